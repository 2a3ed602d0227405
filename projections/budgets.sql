-- Rows are sums, so builders that each fold a part of the payouts add to the same row.

-- name: table
CREATE TABLE budgets (
    partition   integer NOT NULL,
    scope       text    NOT NULL,
    window_name text    NOT NULL,
    limit_paise bigint,
    limit_seq   bigint  NOT NULL,
    reserved    bigint  NOT NULL,
    committed   bigint  NOT NULL,
    PRIMARY KEY (partition, scope, window_name)
);

-- name: comment
COMMENT ON TABLE budgets IS 'Paise reserved and committed per budget window; limit_paise as the last reservation (entry limit_seq) saw it, null is no limit';

-- name: index_scope
CREATE INDEX budgets_scope ON budgets (scope, window_name);

-- name: add
-- No CHECK (reserved >= 0): a row that is about to be added to is checked before the sum is made. The sums are returned.
INSERT INTO budgets AS b (partition, scope, window_name, limit_paise, limit_seq, reserved, committed)
SELECT $1::integer, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
ON CONFLICT (partition, scope, window_name) DO UPDATE SET
    limit_paise = CASE WHEN excluded.limit_seq >= b.limit_seq THEN excluded.limit_paise ELSE b.limit_paise END,
    limit_seq = greatest(b.limit_seq, excluded.limit_seq),
    reserved = b.reserved + excluded.reserved,
    committed = b.committed + excluded.committed
RETURNING scope, window_name, reserved, committed;
