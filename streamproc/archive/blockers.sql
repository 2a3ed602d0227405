-- name: holders
-- Sessions that hold a lock on tables of this schema and have done so for a while; the oldest transaction first. What
-- other roles do is shown only where this one may see it (pg_read_all_stats).
SELECT DISTINCT a.pid, a.usename, a.application_name, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_s
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND c.relnamespace = ANY(SELECT oid FROM pg_namespace WHERE nspname = ANY($1::text[]))
  AND l.pid <> pg_backend_pid() AND coalesce(clock_timestamp() - a.xact_start > make_interval(secs => $2), true)
ORDER BY age_s DESC NULLS LAST, a.pid LIMIT 5;

-- name: blocking
-- Sessions for which one of ours waits, and which.
SELECT DISTINCT b.pid, b.usename, b.application_name, b.state,
       extract(epoch FROM clock_timestamp() - b.xact_start)::float8 AS age_s, w.application_name AS waits
FROM pg_stat_activity w
CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS blocking (pid)
JOIN pg_stat_activity b ON b.pid = blocking.pid
WHERE w.datname = current_database() AND w.application_name LIKE 'streamproc %' AND w.wait_event_type = 'Lock'
ORDER BY age_s DESC NULLS LAST, b.pid LIMIT 5;
