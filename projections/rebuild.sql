-- A schema of views that is being built says how far each builder is. The rows go when it is built.

-- name: table
CREATE TABLE build (
    partition    integer NOT NULL,
    slice        integer NOT NULL,
    slices       integer NOT NULL,
    target_seq   bigint  NOT NULL,
    target_entry text    NOT NULL,
    done_seq     bigint  NOT NULL DEFAULT 0,
    fingerprint  text    NOT NULL,
    PRIMARY KEY (partition, slice)
);

-- name: may_create
SELECT has_database_privilege(current_database(), 'CREATE') AS may, quote_ident(current_database()) AS database,
       quote_ident(current_user) AS me;

-- name: plan
INSERT INTO build (partition, slice, slices, target_seq, target_entry, fingerprint)
SELECT $1, slice, $2, $3, $4, $5 FROM generate_series(0, $2::integer - 1) AS slice;

-- name: extend
-- Not where the rows are all there and the indexes made: then it is the runner that goes on.
UPDATE build SET target_seq = $2, target_entry = $3
WHERE partition = $1 AND target_seq < $2 AND NOT EXISTS (SELECT FROM view_heads);

-- name: slices
SELECT partition, slice, slices, target_seq, target_entry, done_seq, fingerprint
FROM build ORDER BY partition, slice;

-- name: move
UPDATE build SET done_seq = $4
WHERE partition = $1 AND slice = $2 AND done_seq = $3;

-- name: rows
-- A builder's share of a stretch: the rows of its payouts. Those about no payout are one share's. By ranges of the dense
-- seq and not by LIMIT, for which the planner sorts all the rest of the archive, again for every stretch. The builder
-- puts them in order: it costs nothing there, and here it copies them all once more.
SELECT seq, entry_id AS id, e, m, payout FROM events
WHERE partition = $1 AND seq > $2 AND seq <= $3
  AND (hashtext(coalesce(payout, '')) & 2147483647) % $4 = $5;

-- name: count
SELECT count(*) FROM events WHERE partition = $1 AND seq > $2 AND seq <= $3;

-- name: heads
SELECT partition, seq, entry_id FROM heads ORDER BY partition;

-- name: at_time
SELECT seq, entry_id FROM events WHERE partition = $1 AND entry_ms <= $2
ORDER BY entry_ms DESC, entry_n DESC LIMIT 1;

-- name: at_seq
SELECT seq, entry_id FROM events WHERE partition = $1 AND seq = $2;

-- name: at_entry
SELECT seq, entry_id FROM events WHERE partition = $1 AND entry_ms = $2 AND entry_n = $3;

-- name: set_heads
INSERT INTO view_heads (view, partition, seq, entry_id, version)
SELECT view, $1, $2, $3, version FROM unnest($4::text[], $5::integer[]) AS v (view, version);

-- name: schemas
SELECT nspname FROM pg_namespace WHERE nspname = $1;

-- name: wait_for_lock
SELECT pg_advisory_lock($1, hashtext($2));

-- name: take_lock
SELECT pg_try_advisory_lock($1, hashtext($2));
