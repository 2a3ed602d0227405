-- name: table
CREATE TABLE payouts (
    payout      text        NOT NULL,
    partition   integer     NOT NULL,
    account     text        NOT NULL,
    agent       text        NOT NULL,
    identity    text        NOT NULL,
    amount      bigint      NOT NULL,
    currency    text        NOT NULL,
    vendor      text        NOT NULL,
    vendor_url  text        NOT NULL,
    state       text        NOT NULL,
    decision    text,
    reason      text        NOT NULL,
    bank_status text        NOT NULL,
    received_at timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    entry_id    text        NOT NULL,
    record      bytea       NOT NULL,
    PRIMARY KEY (payout, partition)
);

-- name: comment
COMMENT ON TABLE payouts IS 'A payout as the fold of its events; record is the whole of it as JSON bytes; amount in paise';

-- name: index_agent
CREATE INDEX payouts_agent ON payouts (agent, received_at);

-- name: index_state
CREATE INDEX payouts_state ON payouts (state, received_at);

-- name: load
SELECT payout, record FROM payouts WHERE partition = $1 AND payout = ANY($2::text[]);

-- name: update
UPDATE payouts AS p SET
    account = n.account,
    agent = n.agent,
    identity = n.identity,
    amount = n.amount,
    currency = n.currency,
    vendor = n.vendor,
    vendor_url = n.vendor_url,
    state = n.state,
    decision = n.decision,
    reason = n.reason,
    bank_status = n.bank_status,
    received_at = n.received_at,
    updated_at = n.updated_at,
    entry_id = n.entry_id,
    record = n.record
FROM unnest(
    $1::text[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[], $16::text[], $17::bytea[]
) AS n (
    payout, partition, account, agent, identity, amount, currency, vendor, vendor_url,
    state, decision, reason, bank_status, received_at, updated_at, entry_id, record
)
WHERE p.payout = n.payout AND p.partition = n.partition;
