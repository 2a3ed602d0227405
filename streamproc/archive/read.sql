-- name: archived_upto
SELECT entry_id FROM heads WHERE partition = $1;

-- name: entry_archived
SELECT EXISTS (SELECT FROM events WHERE partition = $1 AND entry_ms = $2 AND entry_n = $3 AND e = $4);

-- name: last_archived
SELECT a.seq, a.entry_id, a.e, a.m
FROM heads AS h JOIN events AS a ON a.partition = h.partition AND a.seq = h.seq
WHERE h.partition = $1;

-- name: payout_history
SELECT seq, entry_id, e, m, payout, hash, partition, archived_at
FROM events WHERE payout = $1
ORDER BY entry_ms, entry_n LIMIT $2;

-- name: payout_record
-- A reference that the bank showed of another account belongs to nobody there: the intent comes first.
SELECT record FROM payouts WHERE payout = $1 ORDER BY (agent = 'unknown'), updated_at DESC, partition LIMIT 1;

-- name: payout_known
-- With whether the archive has more of it than that row can show: entries after the view's position, or, where there is
-- no row of their partition, any that would make one.
SELECT (SELECT record FROM payouts WHERE payout = $1 ORDER BY (agent = 'unknown'), updated_at DESC, partition LIMIT 1)
       AS record,
       EXISTS (SELECT FROM events e LEFT JOIN view_heads v ON v.view = 'payouts' AND v.partition = e.partition
               WHERE e.payout = $1
                 AND (e.seq > coalesce(v.seq, 0)
                      OR (position('"payout.observed"'::bytea IN e.e) > 0 OR position('"payout.requested"'::bytea IN e.e) > 0)
                         AND NOT EXISTS (SELECT FROM payouts p WHERE p.payout = $1 AND p.partition = e.partition))) AS more;

-- name: payout_at_bank
SELECT payout FROM payouts WHERE at_bank = $1 AND at_bank <> '' ORDER BY partition LIMIT 1;

-- name: audit_lines
-- What is asked for follows, then an order: only conditions that are there, so that each has its index.
SELECT id, partition, seq, place, payout, agent, vendor, at, kind, decision, reason, actor, amount FROM audit WHERE true;

-- name: audit_if_payout
AND payout = $1;

-- name: audit_if_agent
AND agent = $1;

-- name: audit_if_vendor
AND vendor = $1;

-- name: audit_if_kind
AND kind = $1;

-- name: audit_if_seldom_kind
-- Says what the index says, since a plan that is kept does not look at values.
AND kind = $1 AND kind IN ('review', 'policy', 'alert');

-- name: audit_if_decision
AND decision = $1;

-- name: audit_if_seldom_decision
-- The same.
AND decision = $1 AND decision <> 'APPROVED';

-- name: audit_if_reason
AND reason = $1;

-- name: audit_if_seldom_reason
-- The index has the beginning only; of a shorter one that is all. It leaves out what nearly every payout has.
AND left(reason, 64) = $1
AND left(reason, 64) NOT IN ('POLICY_OK', 'approve: done', 'processed', 'committed');

-- name: audit_if_long_reason
AND left(reason, 64) = left($1, 64) AND reason = $1
AND left(reason, 64) NOT IN ('POLICY_OK', 'approve: done', 'processed', 'committed');

-- name: audit_if_since
AND at >= $1;

-- name: audit_if_until
AND at < $1;

-- name: audit_if_after
AND (at, partition, seq, place) < ($1, $2, $3, $4);

-- name: audit_newest_first
ORDER BY at DESC, partition DESC, seq DESC, place DESC;

-- name: audit_oldest_first
ORDER BY at, partition, seq, place;

-- name: audit_position
SELECT a.at, a.partition, a.seq, a.place
FROM events e JOIN audit a ON a.partition = e.partition AND a.seq = e.seq
WHERE e.partition = $1 AND e.entry_ms = $2 AND e.entry_n = $3 AND a.place = $4;

-- name: policy_versions
SELECT DISTINCT ON (version) scope, version, at, by_whom, why, before, after, effective, confirmed_by, channel,
    confirmed_channel
FROM policies WHERE scope = $1
ORDER BY version, partition LIMIT $2;

-- name: views_upto
-- Where the views are; all of them are at the same entry, but for the moment in which one is swapped.
SELECT entry_id FROM view_heads WHERE partition = $1 ORDER BY seq LIMIT 1;
