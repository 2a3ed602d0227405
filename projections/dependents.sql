-- name: views_on
-- Views of the operator's that read these tables; their definitions name every schema if the search path is empty.
SELECT DISTINCT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
       array_to_string(c.reloptions, ', ') AS options, pg_get_viewdef(c.oid) AS definition
FROM pg_depend d
JOIN pg_rewrite r ON r.oid = d.objid
JOIN pg_class c ON c.oid = r.ev_class
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1::oid[])
  AND c.relkind = 'v' AND r.ev_type = '1'
ORDER BY name;

-- name: others_on
-- Whatever else depends on these tables or their row types, and would be dropped with them. What is part of a table (an
-- index, a trigger) depends on it in another way, but for some checks and defaults. Of a view only what defines it (rule
-- type 1) is led to the new tables, not what somebody made of writing to it. Row security is named for the live tables
-- alone: the new ones would have none, and grants as before.
SELECT DISTINCT CASE WHEN r.ev_type = '1' THEN pg_describe_object('pg_class'::regclass, r.ev_class, 0)
                     ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END AS what
FROM pg_depend d
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
WHERE d.deptype = 'n'
  AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1::oid[])
       OR d.refclassid = 'pg_type'::regclass
          AND d.refobjid IN (SELECT unnest(ARRAY[t.oid, t.typarray])
                             FROM pg_type t WHERE t.typrelid = ANY($1::oid[]) AND t.typrelid <> 0))
  AND NOT ($2::boolean AND r.ev_type = '1' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = r.ev_class AND c.relkind = 'v'))
  AND NOT (d.classid = 'pg_constraint'::regclass
           AND EXISTS (SELECT FROM pg_constraint k WHERE k.oid = d.objid AND k.conrelid = ANY($1::oid[])))
  AND NOT (d.classid = 'pg_attrdef'::regclass
           AND EXISTS (SELECT FROM pg_attrdef k WHERE k.oid = d.objid AND k.adrelid = ANY($1::oid[])))
UNION
SELECT 'row security of ' || pg_describe_object('pg_class'::regclass, c.oid, 0)
FROM pg_class c WHERE $2::boolean AND c.oid = ANY($1::oid[]) AND c.relrowsecurity
ORDER BY what;

-- name: grants_on
-- Statements that grant on a table of that name what others than its owner were granted on the live one.
SELECT format('GRANT %s ON %I.%I TO %s%s', a.privilege_type, n.nspname, c.relname,
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN aclexplode(c.relacl) a
WHERE c.oid = ANY($1::oid[]) AND a.grantee <> c.relowner;

-- name: column_grants_on
SELECT format('GRANT %s (%I) ON %I.%I TO %s%s', a.privilege_type, t.attname, n.nspname, c.relname,
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute t ON t.attrelid = c.oid CROSS JOIN aclexplode(t.attacl) a
WHERE c.oid = ANY($1::oid[]) AND a.grantee <> c.relowner AND NOT t.attisdropped;

-- name: revokes_on
-- Statements that take from others than its owner all that they were granted on a table and its columns.
SELECT DISTINCT format('REVOKE ALL ON %I.%I FROM %s CASCADE', n.nspname, c.relname,
                       CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT c.relacl UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = c.oid) AS acls (acl)
CROSS JOIN aclexplode(acls.acl) a
WHERE c.oid = ANY($1::oid[]) AND a.grantee <> c.relowner;

-- name: oids
SELECT to_regclass(name)::oid FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL;
