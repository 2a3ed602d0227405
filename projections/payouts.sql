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
    at_bank     text        NOT NULL,
    PRIMARY KEY (payout, partition)
);

-- name: comment
COMMENT ON TABLE payouts IS 'A payout as the fold of its events; record is the whole of it as JSON bytes; amount in paise; at_bank is what the bank calls an intent of ours';

-- name: table_statistics
-- What no query looks for by itself, and is long or different in every row.
ALTER TABLE payouts ALTER COLUMN record SET STATISTICS 0, ALTER COLUMN vendor_url SET STATISTICS 0,
    ALTER COLUMN entry_id SET STATISTICS 0, ALTER COLUMN updated_at SET STATISTICS 0;

-- name: index_at_bank
CREATE INDEX payouts_at_bank ON payouts (at_bank) WHERE at_bank <> '';

-- name: index_held
-- Of what waits for people alone: each payout's row is written several times, and so is each of its index rows.
CREATE INDEX payouts_held ON payouts (received_at, payout) WHERE state = 'held';

-- name: load
SELECT payout, record FROM payouts WHERE partition = $1 AND payout = ANY($2::text[]);

-- name: delete
DELETE FROM payouts WHERE partition = $1 AND payout = ANY($2::text[]);
