-- Times are the least and the greatest, so builders that each fold a part of the payouts may write the same row.

-- name: table
CREATE TABLE beneficiaries (
    partition     integer     NOT NULL,
    account       text        NOT NULL,
    fund_account  text        NOT NULL,
    vendor        text        NOT NULL,
    first_at      timestamptz NOT NULL,
    last_at       timestamptz NOT NULL,
    PRIMARY KEY (account, fund_account, vendor, partition)
);

-- name: comment
COMMENT ON TABLE beneficiaries IS 'Fund accounts and vendors (hosts, empty where none was named) that were approved to be paid together: when first, and when that was last noted (at most once a month)';

-- name: index_vendor
CREATE INDEX beneficiaries_vendor ON beneficiaries (vendor, account);

-- name: add
INSERT INTO beneficiaries AS b (partition, account, fund_account, vendor, first_at, last_at)
SELECT $1::integer, * FROM unnest($2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
ON CONFLICT (account, fund_account, vendor, partition) DO UPDATE SET
    first_at = least(b.first_at, excluded.first_at),
    last_at = greatest(b.last_at, excluded.last_at);
