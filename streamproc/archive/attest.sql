-- name: identity
SELECT id::text FROM archive_identity;

-- name: last
SELECT size, entry_id, hash, root, frontier, note FROM checkpoints
WHERE partition = $1 ORDER BY size DESC LIMIT 1;

-- name: row_at
SELECT entry_id, hash FROM events WHERE partition = $1 AND seq = $2;

-- name: rows
SELECT seq, entry_id AS id, e, m, hash FROM events
WHERE partition = $1 AND seq > $2 AND seq <= $3
ORDER BY seq;

-- name: waited_s
-- By Postgres's clock, which no start or stop of ours sets back.
SELECT extract(epoch FROM clock_timestamp() - archived_at)::float8 FROM events WHERE partition = $1 AND seq = $2;

-- name: insert
INSERT INTO checkpoints (partition, size, entry_id, hash, root, frontier, note) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: published
SELECT size FROM checkpoints_published WHERE partition = $1;

-- name: unpublished
SELECT size, note FROM checkpoints WHERE partition = $1 AND size > $2 ORDER BY size LIMIT 1;

-- name: set_published
INSERT INTO checkpoints_published (partition, size) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET size = excluded.size WHERE checkpoints_published.size < excluded.size;

-- name: checkpoint_states
-- Per partition: archived, covered by the last checkpoint, handed outside; the time (ms) of the first entry that no
-- checkpoint covers, and of the first checkpoint that was not handed outside.
SELECT h.partition, h.seq, coalesce(c.size, 0) AS covered, coalesce(p.size, 0) AS published,
       (SELECT entry_ms FROM events e WHERE e.partition = h.partition AND e.seq = coalesce(c.size, 0) + 1) AS waiting_ms,
       (SELECT (extract(epoch FROM k.made_at) * 1000)::bigint FROM checkpoints k
        WHERE k.partition = h.partition AND k.size > coalesce(p.size, 0) ORDER BY k.size LIMIT 1) AS unpublished_ms
FROM heads h
LEFT JOIN LATERAL (SELECT max(size) AS size FROM checkpoints WHERE partition = h.partition) c ON true
LEFT JOIN checkpoints_published p USING (partition)
ORDER BY h.partition;
