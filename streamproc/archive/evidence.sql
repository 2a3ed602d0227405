-- name: ends
SELECT partition, seq FROM heads ORDER BY partition;

-- name: entries_about
SELECT partition, seq FROM events WHERE payout = ANY ($1::text[]);

-- name: entries
-- With the hash of the entry before, which an entry's own hash is chained to.
SELECT e.seq, e.entry_id AS id, e.e, e.m, e.payout, e.hash,
       coalesce((SELECT b.hash FROM events b WHERE b.partition = e.partition AND b.seq = e.seq - 1),
                decode(repeat('00', 32), 'hex')) AS before
FROM events e
WHERE e.partition = $1 AND e.seq = ANY ($2::bigint[])
ORDER BY e.seq;

-- name: hashes
SELECT hash FROM events WHERE partition = $1 AND seq <= $2 ORDER BY seq;

-- name: policy_entry
SELECT seq FROM policies WHERE partition = $1 AND scope = $2 AND version = $3;

-- name: last_note
SELECT note FROM checkpoints WHERE partition = $1 ORDER BY size DESC LIMIT 1;

-- name: entry_id
SELECT entry_id FROM events WHERE partition = $1 AND seq = $2;
