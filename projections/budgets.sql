-- name: load
SELECT scope, window_name, limit_paise, reserved, committed
FROM budgets
JOIN unnest($2::text[], $3::text[]) AS wanted (s, w) ON scope = wanted.s AND window_name = wanted.w
WHERE partition = $1;

-- name: upsert
INSERT INTO budgets (partition, scope, window_name, limit_paise, reserved, committed)
SELECT $1::integer, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
ON CONFLICT (partition, scope, window_name) DO UPDATE SET
    limit_paise = excluded.limit_paise,
    reserved = excluded.reserved,
    committed = excluded.committed;
