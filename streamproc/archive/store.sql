-- name: wait_for_disk
-- Only where it is off: the other values all wait for our disk, and which replicas they wait for is the owner's choice.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';

-- name: end_if_idle
-- Only where the server knows it, since Postgres 14.
SELECT set_config('idle_session_timeout', $1, false) FROM pg_settings WHERE name = 'idle_session_timeout';

-- name: take_lock
SELECT pg_try_advisory_lock($1, $2);

-- name: end_stuck_copy
-- A server that waits for the rows of a COPY, or for a client to read what it sends, heeds none of its own timeouts. The
-- client would have given up by now, if it ran. Only a session of our own role, which we may end.
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity AS a USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = $1::bigint::oid AND objid = $2::bigint::oid AND objsubid = 2
  AND a.datname = current_database() AND pg_locks.database = a.datid AND a.usename = session_user
  AND a.state = 'active' AND a.wait_event IN ('ClientRead', 'ClientWrite')
  AND a.query_start < clock_timestamp() - $3::bigint * interval '1 ms';

-- name: give_lock_back
SELECT pg_advisory_unlock($1, $2);

-- name: open_head
INSERT INTO heads (partition) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: read_head
SELECT seq, entry_id, hash FROM heads WHERE partition = $1;

-- name: archived_heads
SELECT partition, seq, entry_id, hash FROM heads WHERE seq > 0 ORDER BY partition;

-- name: partitions_opened
-- A projector makes a row for every partition of its log before it archives anything.
SELECT count(*) FROM heads;

-- name: move_head
-- Compare and set; the row stays locked until the transaction ends, so it also serialises writers.
UPDATE heads SET seq = $5, entry_id = $6, hash = $7, updated_at = now()
WHERE partition = $1 AND seq = $2 AND entry_id = $3 AND hash = $4
RETURNING seq;
