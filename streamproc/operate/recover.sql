-- What a recovery asks. `payouts`, `budgets`, `policies` are those of the place that it has built, `events` is the archive.

-- name: payouts
-- Everything that is not over, what is over for less than the retention time, and what an attempt is looked for of.
SELECT record, split_part(entry_id, '-', 1)::bigint AS last_ms FROM payouts
WHERE partition = $1
  AND (NOT (state = ANY($2::text[]) OR (state = 'rejected' AND bank_status = ANY($3::text[])))
       OR split_part(entry_id, '-', 1)::bigint >= $4
       OR position('"maybe_sent":true'::bytea IN record) > 0);

-- name: budgets
SELECT scope, window_name, reserved, committed, limit_seq FROM budgets WHERE partition = $1;

-- name: beneficiaries
-- Each fund account's vendors together.
SELECT account, fund_account AS name, vendor AS other, (extract(epoch FROM last_at) * 1000000)::bigint AS at_us
FROM beneficiaries WHERE partition = $1 ORDER BY account, fund_account;

-- name: vendors_paid
-- Each vendor's fund accounts together.
SELECT account, vendor AS name, fund_account AS other, (extract(epoch FROM last_at) * 1000000)::bigint AS at_us
FROM beneficiaries WHERE partition = $1 AND vendor <> '' ORDER BY account, vendor;

-- name: times_of_seqs
SELECT seq, entry_ms FROM events WHERE partition = $1 AND seq = ANY($2::bigint[]);

-- name: policies
-- The entries with the newest version of each scope.
SELECT DISTINCT ON (scope) scope, version, seq FROM policies WHERE partition = $1 ORDER BY scope, version DESC;

-- name: token_entries
-- A token is about no payout; the tag is looked for in the bytes.
SELECT entry_id AS id, e, m FROM events
WHERE partition = $1 AND seq <= $2 AND payout IS NULL AND position('"type":"token.'::bytea IN e) > 0
ORDER BY seq;

-- name: proposal_entries
-- A proposal is about no payout either.
SELECT entry_id AS id, e, m FROM events
WHERE partition = $1 AND seq <= $2 AND payout IS NULL AND position('"type":"policy.propos'::bytea IN e) > 0
ORDER BY seq;

-- name: parties
SELECT payout, agent, (extract(epoch FROM received_at) * 1000000)::bigint AS received_us FROM payouts
WHERE partition = $1 AND payout = ANY($2::text[]);

-- name: archived_s
SELECT floor(extract(epoch FROM archived_at))::bigint FROM events WHERE partition = $1 AND seq = $2;

-- name: accounts
SELECT DISTINCT account FROM payouts WHERE partition = $1;

-- name: entries_of_seqs
SELECT seq, entry_id AS id, e, m FROM events WHERE partition = $1 AND seq = ANY($2::bigint[]) ORDER BY seq;

-- name: entries_of_ids
SELECT entry_id AS id, e, m FROM events
JOIN unnest($2::bigint[], $3::bigint[]) AS w (ms, n) ON entry_ms = w.ms AND entry_n = w.n
WHERE partition = $1;

-- name: histories
SELECT payout, entry_id AS id, e, m FROM events
WHERE partition = $1 AND payout = ANY($2::text[])
ORDER BY payout, entry_ms, entry_n;

-- name: knows_payout
SELECT EXISTS (SELECT FROM events WHERE partition = $1 AND payout = $2);

-- name: wanted_table
-- Entries that the new log must hold, and for which group they are pending ('' for none).
CREATE TEMP TABLE recover_wanted (
    ms         bigint NOT NULL,
    n          bigint NOT NULL,
    group_name text   NOT NULL,
    PRIMARY KEY (ms, n, group_name)
);

-- name: empty_wanted
TRUNCATE recover_wanted;

-- name: want
INSERT INTO recover_wanted SELECT ms, n, $3 FROM unnest($1::bigint[], $2::bigint[]) AS w (ms, n)
ON CONFLICT DO NOTHING;

-- name: wanted_entries
SELECT entry_id AS id, e, m
FROM (SELECT DISTINCT ms, n FROM recover_wanted) AS w
JOIN events ON entry_ms = ms AND entry_n = n AND partition = $1
ORDER BY ms, n;

-- name: wanted_pending
SELECT ms || '-' || n AS id FROM recover_wanted WHERE group_name = $1 ORDER BY ms, n;
