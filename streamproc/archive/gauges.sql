-- name: open_holds
SELECT count(*) AS count,
    coalesce(sum(amount), 0) AS paise,
    coalesce(extract(epoch FROM now() - min(held_at)), 0) AS oldest_s
FROM holds WHERE state = 'open';

-- name: views_behind
-- A partition that has no views yet is behind by all that it has. The age is by Postgres's clock and since the archiving:
-- what was archived late is not late for the views.
SELECT a.partition, a.seq - v.seq AS behind,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - e.archived_at) FROM events AS e
                 WHERE e.partition = a.partition AND e.seq = v.seq + 1), 0) AS oldest_s
FROM heads AS a
CROSS JOIN LATERAL (SELECT coalesce(min(seq), 0) AS seq FROM view_heads WHERE partition = a.partition) AS v
ORDER BY a.partition;

-- name: unsigned
-- Since its archiving, which is from when a checkpoint is due. Whether any was ever made for this archive: no number of
-- an archive that nobody signs.
SELECT a.partition, c.size > 0 AS ever,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - e.archived_at) FROM events AS e
                 WHERE e.partition = a.partition AND e.seq = c.size + 1), 0) AS oldest_s
FROM heads AS a
CROSS JOIN LATERAL (SELECT coalesce(max(size), 0) AS size FROM checkpoints WHERE partition = a.partition) AS c;

-- name: budgets_used
-- By the limits in force: those of the newest version of the agent's policy, whose fields are named by $2. A window's rows
-- are one for each partition that an account of the agent is in; a limit counts in each of them.
SELECT scope, window_name, max(policy.limit_paise) AS limit_paise, max(reserved + committed) AS used
FROM unnest($1::text[], $2::text[]) AS wanted (window_name, field)
JOIN budgets USING (window_name)
CROSS JOIN LATERAL (
    SELECT (effective ->> field)::bigint AS limit_paise FROM policies
    WHERE policies.partition = budgets.partition AND policies.scope = budgets.scope
    ORDER BY version DESC LIMIT 1
) AS policy
WHERE scope LIKE 'agent:%' AND policy.limit_paise IS NOT NULL
GROUP BY scope, window_name
ORDER BY max((reserved + committed)::numeric / greatest(policy.limit_paise, 1)) DESC, scope LIMIT $3;

-- name: decided_since
-- Decisions since a time by outcome and reason, and how many of them since a later one.
SELECT decision, reason, count(*) AS count, coalesce(sum(amount), 0) AS paise, count(*) FILTER (WHERE at >= $2) AS recent
FROM audit
WHERE decision IN ('APPROVED', 'REJECTED', 'HELD') AND at >= $1
GROUP BY decision, reason
ORDER BY count(*) DESC, decision, reason LIMIT $3;

-- name: positions
SELECT partition, entry_id FROM heads ORDER BY partition;
