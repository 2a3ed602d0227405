-- name: archived_upto
SELECT entry_id FROM heads WHERE partition = $1;

-- name: entry_archived
SELECT EXISTS (SELECT FROM events WHERE partition = $1 AND entry_ms = $2 AND entry_n = $3);

-- name: payout_history
SELECT partition, seq, entry_id, payout, e, m, hash, archived_at
FROM events WHERE payout = $1
ORDER BY entry_ms, entry_n LIMIT $2;

-- name: chain_part
SELECT partition, seq, entry_id, payout, e, m, hash, archived_at
FROM events WHERE partition = $1 AND seq > $2
ORDER BY seq LIMIT $3;

-- name: payout_record
SELECT record FROM payouts WHERE payout = $1 ORDER BY updated_at DESC, partition LIMIT 1;

-- name: budgets_of_scope
SELECT partition, scope, window_name AS window, limit_paise, reserved, committed
FROM budgets WHERE scope = $1
ORDER BY window_name DESC, partition LIMIT $2;

-- name: audit_rows
SELECT id, partition, seq, place, payout, agent, vendor, at, kind, decision, reason, actor, amount
FROM audit
WHERE ($1::text IS NULL OR payout = $1)
  AND ($2::text IS NULL OR agent = $2)
  AND ($3::text IS NULL OR kind = $3)
  AND ($4::text IS NULL OR decision = $4)
  AND ($5::text IS NULL OR reason = $5)
  AND ($6::timestamptz IS NULL OR at >= $6)
  AND ($7::timestamptz IS NULL OR at < $7)
ORDER BY at DESC, id DESC LIMIT $8;

-- name: policy_versions
SELECT DISTINCT ON (version) scope, version, at, by_whom, why, before, after, effective
FROM policies WHERE scope = $1
ORDER BY version, partition LIMIT $2;

-- name: views_upto
-- Where the views are; all of them are at the same entry, but for the moment in which one is swapped.
SELECT entry_id FROM view_heads WHERE partition = $1 ORDER BY seq LIMIT 1;
