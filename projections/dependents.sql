-- name: views_on
-- Views of the operator's that read these tables; their definitions name every schema if the search path is empty.
SELECT DISTINCT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
       array_to_string(c.reloptions, ', ') AS options, pg_get_viewdef(c.oid) AS definition
FROM pg_depend d
JOIN pg_rewrite r ON r.oid = d.objid
JOIN pg_class c ON c.oid = r.ev_class
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1::oid[])
  AND c.relkind = 'v'
ORDER BY name;

-- name: others_on
-- Whatever else depends on these tables or their row types, and would be dropped with them. What is part of a table (an
-- index, a trigger) depends on it in another way, but for some checks and defaults.
SELECT DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass
                     THEN (SELECT pg_describe_object('pg_class'::regclass, r.ev_class, 0)
                           FROM pg_rewrite r WHERE r.oid = d.objid)
                     ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END AS what
FROM pg_depend d
WHERE d.deptype = 'n'
  AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY($1::oid[])
       OR d.refclassid = 'pg_type'::regclass
          AND d.refobjid IN (SELECT reltype FROM pg_class WHERE oid = ANY($1::oid[])))
  AND NOT ($2::boolean AND d.classid = 'pg_rewrite'::regclass
           AND EXISTS (SELECT FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
                       WHERE r.oid = d.objid AND c.relkind = 'v'))
  AND NOT (d.classid = 'pg_constraint'::regclass
           AND EXISTS (SELECT FROM pg_constraint k WHERE k.oid = d.objid AND k.conrelid = ANY($1::oid[])))
  AND NOT (d.classid = 'pg_attrdef'::regclass
           AND EXISTS (SELECT FROM pg_attrdef k WHERE k.oid = d.objid AND k.adrelid = ANY($1::oid[])))
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

-- name: oids
SELECT to_regclass(name)::oid FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL;
