-- `events_month` runs with the rights of the schema's owner. Its search path named no pg_temp, which Postgres then
-- searches first, even before pg_catalog: whoever could call it, by default anybody who can log in, could give it a
-- `text` of their own, whose check ran as the owner.

-- name: search_path_of_events_month
-- pg_catalog is not named: it is searched first then, and tables are made in the first schema that is.
DO $$
DECLARE
    home text := (SELECT n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                  WHERE p.oid = 'events_month(bigint)'::regprocedure);
BEGIN
    EXECUTE format('ALTER FUNCTION %I.events_month(bigint) SET search_path = %I, pg_temp', home, home);
END
$$;

-- name: callers_of_events_month
-- Only where the projector's role is there: where it is not, nothing else names who may call it.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'streamproc_projector') THEN
        GRANT EXECUTE ON FUNCTION events_month(bigint) TO streamproc_projector;
        REVOKE EXECUTE ON FUNCTION events_month(bigint) FROM PUBLIC;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;
