-- name: partitions
-- Every partition that any table names; of `events` by its index, without reading it.
WITH RECURSIVE archived (partition) AS (
    SELECT min(partition) FROM events
    UNION ALL
    SELECT (SELECT min(e.partition) FROM events e WHERE e.partition > a.partition)
    FROM archived a WHERE a.partition IS NOT NULL
)
SELECT partition FROM archived WHERE partition IS NOT NULL
UNION SELECT partition FROM heads UNION SELECT partition FROM checkpoints
UNION SELECT partition FROM checkpoints_published
ORDER BY partition;

-- name: rows_of
SELECT seq, entry_ms || '-' || entry_n, e, m, payout, hash FROM events
WHERE partition = $1 ORDER BY seq, entry_ms, entry_n;

-- name: rows_from
SELECT seq, entry_ms || '-' || entry_n, e, m, payout, hash FROM events
WHERE partition = $1 AND seq >= $2 ORDER BY seq, entry_ms, entry_n LIMIT 3;

-- name: checkpoints_of
SELECT size, entry_id, hash, root, frontier, note FROM checkpoints
WHERE partition = $1 AND size > $2 AND size <= $3 ORDER BY size;

-- name: last_beyond
SELECT size, entry_id, hash, root, frontier, note FROM checkpoints
WHERE partition = $1 AND size > $2 ORDER BY size DESC LIMIT 1;

-- name: published
SELECT size FROM checkpoints_published WHERE partition = $1;

-- name: total
SELECT coalesce(sum(seq), 0)::bigint FROM heads WHERE partition = ANY ($1::integer[]);

-- name: missing_outside
-- Checkpoints that the outside does not have: all, those after its first ($3), and of these those before its last ($4).
SELECT count(*) AS missing, count(*) FILTER (WHERE size > $3) AS since, count(*) FILTER (WHERE size > $3 AND size < $4) AS within
FROM checkpoints
WHERE partition = $1 AND size <> ALL ($2::bigint[])
  AND size <= (SELECT p.size FROM checkpoints_published AS p WHERE p.partition = $1);
