-- name: lock_heads
-- The projector moves these rows first of all in its transaction, so from here on it waits.
SELECT partition, view, seq FROM view_heads ORDER BY partition, view FOR UPDATE;

-- name: heads_of
SELECT view, partition, seq, entry_id, version FROM view_heads WHERE view = ANY($1::text[]) ORDER BY view, partition;

-- name: delete_heads
DELETE FROM view_heads WHERE view = ANY($1::text[]);

-- name: insert_heads
INSERT INTO view_heads (view, partition, seq, entry_id, version)
SELECT * FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::integer[]);

-- name: exists
SELECT to_regclass($1) IS NOT NULL;

-- name: mark
SELECT pg_current_xact_id()::xid;

-- name: older_readers
-- Sessions whose snapshot was taken before $1 ended; of other roles only where this one may see them (pg_read_all_stats).
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND age(backend_xmin) >= age($1::xid)
ORDER BY pid;
