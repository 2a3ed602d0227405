-- name: make_range
SELECT events_month($1);

-- name: entries_by_id
SELECT seq, entry_id AS id, e, m
FROM events
JOIN unnest($2::bigint[], $3::bigint[]) AS wanted (ms, n) ON entry_ms = wanted.ms AND entry_n = wanted.n
WHERE partition = $1;

-- name: rows_between
-- A range of seq and no LIMIT: seq is dense, and with a LIMIT the planner sorts all the rest of the archive.
SELECT seq, entry_id AS id, e, m, payout
FROM events WHERE partition = $1 AND seq > $2 AND seq <= $3
ORDER BY seq;

-- name: head_seq
SELECT seq FROM heads WHERE partition = $1;
