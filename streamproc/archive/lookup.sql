-- name: held_page
-- Ids are in the order of their bytes, whatever the database's collation: a page from Redis may follow one from here.
SELECT record FROM payouts
WHERE state = 'held'
  AND ($1::timestamptz IS NULL OR (received_at, payout COLLATE "C") > ($1, $2::text))
  AND ($3::text IS NULL OR account = $3) AND ($4::text IS NULL OR agent = $4)
ORDER BY received_at, payout COLLATE "C" LIMIT $5;

-- name: refuses_writes
SELECT CASE WHEN pg_is_in_recovery() THEN 'it is a standby'
            WHEN current_setting('transaction_read_only') = 'on' THEN 'its transactions are read-only by default'
            ELSE '' END;

-- name: connection_slots
-- The least of the server's limit without what it reserves, the role's and the database's; -1 there is none.
SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                 - coalesce(current_setting('reserved_connections', true)::int, 0),
             (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user),
             (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())) AS allowed,
       (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') AS open;

-- name: policy_entries
-- A policy change is about no payout; the tag is looked for in the bytes.
SELECT seq, entry_id AS id, e, m FROM events
WHERE partition = $1 AND seq <= $2 AND payout IS NULL AND position('"policy.changed"'::bytea IN e) > 0
ORDER BY seq;

-- name: decided_payouts
SELECT DISTINCT payout FROM events
WHERE payout = ANY($2::text[]) AND partition = $1 AND position('"payout.decided"'::bytea IN e) > 0;

-- name: approved_payouts
-- Those of an agent, by the rules or by people; of many a sample of the whole time. Its order is a hash that also takes
-- the time of receipt, so that an agent that chooses ids (of intents) does not choose the sample. Without an index, since
-- each payout's row is written several times and so would be its index rows, for a question of every few weeks; the sort
-- keeps no more rows than the limit.
SELECT payout, amount, (extract(epoch FROM received_at) * 1000000)::bigint AS received_at FROM payouts
WHERE agent = $1 AND decision = 'APPROVED' AND received_at >= $2
ORDER BY md5(extract(epoch FROM received_at)::text || payout) COLLATE "C", payout COLLATE "C" LIMIT $3;

-- name: entries_between
-- seq is dense, so two look-ups count the entries from the first id up to the second.
SELECT coalesce((SELECT seq FROM events WHERE partition = $1 AND (entry_ms, entry_n) >= ($4, $5)
                 ORDER BY entry_ms, entry_n LIMIT 1), 0)
     - coalesce((SELECT seq FROM events WHERE partition = $1 AND (entry_ms, entry_n) >= ($2, $3)
                 ORDER BY entry_ms, entry_n LIMIT 1), 0) AS entries;

-- name: folded_budgets
-- With the entry that the view shows, in one snapshot.
SELECT h.entry_id, b.scope, b.window_name, b.reserved, b.committed
FROM view_heads h LEFT JOIN budgets b ON b.partition = h.partition
WHERE h.partition = $1 AND h.view = 'budgets';
