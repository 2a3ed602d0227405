-- Rows are sums, so builders that each fold a part of the payouts add to the same row.

-- name: table
CREATE TABLE agents (
    partition        integer     NOT NULL,
    agent            text        NOT NULL,
    payouts          bigint      NOT NULL,
    amount           numeric     NOT NULL,
    approved         bigint      NOT NULL,
    approved_amount  numeric     NOT NULL,
    rejected         bigint      NOT NULL,
    held             bigint      NOT NULL,
    bypassed         bigint      NOT NULL,
    processed_amount numeric     NOT NULL,
    threats          bigint      NOT NULL,
    first_at         timestamptz NOT NULL,
    last_at          timestamptz NOT NULL,
    PRIMARY KEY (agent, partition)
);

-- name: comment
COMMENT ON TABLE agents IS 'What each agent asked for and what came of it; counts of payouts and of decisions, amounts in paise';

-- name: add
INSERT INTO agents AS t (partition, agent, payouts, amount, approved, approved_amount, rejected, held, bypassed, processed_amount, threats, first_at, last_at)
SELECT $1::integer, agent, payouts, amount::numeric, approved, approved_amount::numeric, rejected, held, bypassed, processed_amount::numeric, threats, first_at, last_at
FROM unnest(
    $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[],
    $10::text[], $11::bigint[], $12::timestamptz[], $13::timestamptz[]
) AS n (agent, payouts, amount, approved, approved_amount, rejected, held, bypassed, processed_amount, threats, first_at, last_at)
ON CONFLICT (agent, partition) DO UPDATE SET
    payouts = t.payouts + excluded.payouts,
    amount = t.amount + excluded.amount,
    approved = t.approved + excluded.approved,
    approved_amount = t.approved_amount + excluded.approved_amount,
    rejected = t.rejected + excluded.rejected,
    held = t.held + excluded.held,
    bypassed = t.bypassed + excluded.bypassed,
    processed_amount = t.processed_amount + excluded.processed_amount,
    threats = t.threats + excluded.threats,
    first_at = least(t.first_at, excluded.first_at),
    last_at = greatest(t.last_at, excluded.last_at);
