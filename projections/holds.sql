-- name: table
CREATE TABLE holds (
    payout     text        NOT NULL,
    partition  integer     NOT NULL,
    account    text        NOT NULL,
    agent      text        NOT NULL,
    amount     bigint      NOT NULL,
    reason     text        NOT NULL,
    reasons    text[]      NOT NULL,
    held_at    timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    state      text        NOT NULL CHECK (state IN ('open', 'approved', 'rejected', 'expired', 'over')),
    decided_at timestamptz,
    decided_by text        NOT NULL,
    approvals  integer     NOT NULL,
    PRIMARY KEY (payout, partition)
);

-- name: comment
COMMENT ON TABLE holds IS 'A row per payout that was ever held, and what became of it; over: the bank ended it before anybody decided';

-- name: index_state
CREATE INDEX holds_state ON holds (state, held_at);

-- name: update
-- Who ended it and when is kept once it is written: what comes later of the payout is not the hold's.
UPDATE holds AS h SET
    decided_at = CASE WHEN h.state = n.state THEN h.decided_at ELSE n.decided_at END,
    decided_by = CASE WHEN h.state = n.state THEN h.decided_by ELSE n.decided_by END,
    state = n.state,
    approvals = n.approvals
FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::integer[])
    AS n (payout, state, decided_at, decided_by, approvals)
WHERE h.payout = n.payout AND h.partition = $1;
