-- The schema of views holds every view and how far each has come. The live views are in the default schema;
-- a rebuild fills another one and the two are swapped.

-- name: table
CREATE TABLE view_heads (
    view       text    NOT NULL,
    partition  integer NOT NULL CHECK (partition >= 0),
    seq        bigint  NOT NULL DEFAULT 0 CHECK (seq >= 0),
    entry_id   text    NOT NULL DEFAULT '0-0',
    version    integer NOT NULL,
    generation uuid    NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (view, partition)
);

-- name: comment
COMMENT ON TABLE view_heads IS 'The last archived entry that each view has folded; moved in the transaction that writes its rows. A swap gives a new generation';

-- name: missing
-- Which of these tables the first schema of the search path does not have.
SELECT name FROM unnest($1::text[]) AS name
WHERE to_regclass(quote_ident(current_schema()) || '.' || quote_ident(name)) IS NULL;

-- name: shown_columns
-- A view's columns in their order, each with the expression that shows it in JSON: a time as all our JSON has it, in
-- UTC and with six digits of microseconds. Postgres's own form has the session's zone and no zeros at the end.
SELECT attname AS name, CASE atttypid
           WHEN 'timestamptz'::regtype
           THEN format('to_char(%1$I AT TIME ZONE ''UTC'', ''YYYY-MM-DD"T"HH24:MI:SS.US"Z"'') AS %1$I', attname)
           ELSE format('%I', attname) END AS shown
FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND ($2 OR atttypid <> 'bytea'::regtype)
ORDER BY attnum;

-- name: known_roles
SELECT rolname FROM pg_roles WHERE rolname = ANY($1::text[]);

-- name: open_heads
INSERT INTO view_heads (view, partition, version)
SELECT view, $1, version FROM unnest($2::text[], $3::integer[]) AS v (view, version)
ON CONFLICT (view, partition) DO NOTHING;

-- name: read_heads
SELECT view, seq, entry_id, version, generation FROM view_heads
WHERE partition = $1 AND view = ANY($2::text[]) ORDER BY view;

-- name: view_versions
SELECT DISTINCT view, version FROM view_heads WHERE view = ANY($1::text[]) ORDER BY view;

-- name: move_heads
-- Compare and set, all views at once; the rows stay locked until the transaction ends, so a swap waits its turn.
UPDATE view_heads SET seq = $4, entry_id = $5
WHERE partition = $1 AND view = ANY($2::text[]) AND seq = $3 AND generation = ANY($6::uuid[]);
