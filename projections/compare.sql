-- Checksums do not depend on the order of rows: sums of two 64-bit hashes of each row's text.

-- name: checksum
-- OFFSET 0 keeps the planner from making each row's text twice, which is most of the work.
SELECT count(*) AS rows,
       coalesce(sum(hashtextextended(row, 0)::numeric), 0)::text || '/' ||
       coalesce(sum(hashtextextended(row, 1)::numeric), 0)::text AS checksum
FROM (SELECT v::text AS row FROM {view} AS v OFFSET 0) AS rows;

-- name: rows
SELECT key, digest FROM (SELECT {key} AS key, hashtextextended(v::text, 0) AS digest FROM {view} AS v) AS rows
ORDER BY key COLLATE "C";

-- name: row
SELECT to_jsonb(shown)::text FROM (SELECT {shown} FROM {view} AS v WHERE {key} = $1) AS shown;

-- name: primary_key
SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
WHERE i.indrelid = to_regclass($1) AND i.indisprimary ORDER BY array_position(i.indkey::int2[], a.attnum);

-- name: columns
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum;

-- name: only
(SELECT {columns} FROM {view})

-- name: version
SELECT max(version) FROM view_heads WHERE view = $1;

-- name: positions
SELECT partition, min(seq) AS seq, min(version) AS version FROM view_heads
WHERE view = ANY($1::text[]) GROUP BY partition HAVING count(*) = cardinality($1::text[]) AND min(seq) = max(seq)
ORDER BY partition;

-- name: invariant_no_budget_below_zero
SELECT count(*) FROM budgets WHERE reserved < 0 OR committed < 0;

-- name: invariant_budgets_hold_what_payouts_reserved
-- U+0000 in any text of a record is no text in Postgres, and its JSON is refused as a whole; here as `archive.text` has it.
WITH held AS (
    SELECT p.partition, w.scope, w."window" AS window_name,
           sum(r.amount) FILTER (WHERE r.state = 'reserved') AS reserved,
           sum(r.amount + coalesce(r.fees, 0)) FILTER (WHERE r.state = 'committed') AS committed
    FROM payouts AS p
    CROSS JOIN LATERAL json_to_record(
        replace(convert_from(p.record, 'UTF8'), '\u0000', '\ufffd')::json -> 'reservation')
        AS r (state text, amount bigint, fees bigint, windows json)
    CROSS JOIN LATERAL json_to_recordset(r.windows) AS w (scope text, "window" text)
    WHERE r.state IN ('reserved', 'committed')
    GROUP BY 1, 2, 3
)
SELECT count(*) FROM budgets b FULL JOIN held h USING (partition, scope, window_name)
WHERE coalesce(b.reserved, 0) <> coalesce(h.reserved, 0) OR coalesce(b.committed, 0) <> coalesce(h.committed, 0);

-- name: invariant_open_holds_are_the_held_payouts
SELECT count(*) FROM (SELECT payout, partition FROM holds WHERE state = 'open') h
FULL JOIN (SELECT payout, partition FROM payouts WHERE state = 'held') p USING (payout, partition)
WHERE h.payout IS NULL OR p.payout IS NULL;

-- name: invariant_every_decided_payout_has_its_line_in_the_audit
SELECT count(*) FROM payouts p WHERE decision IS NOT NULL
AND NOT EXISTS (SELECT FROM audit a WHERE a.payout = p.payout AND a.partition = p.partition AND a.kind = 'decision');

-- name: invariant_agents_asked_for_all_payouts
SELECT abs((SELECT coalesce(sum(payouts), 0) FROM agents) - (SELECT count(*) FROM payouts))::bigint;

-- name: invariant_policy_versions_are_dense
SELECT count(*) FROM (
    SELECT 1 FROM policies GROUP BY partition, scope HAVING max(version) <> count(*) OR min(version) <> 1
) AS gaps;
