-- The archive is in ranges of the entries' own time (Redis's clock, in the entry id), a month each. The id is the
-- range's key, so that Postgres itself refuses the same entry twice; seq is unique by its one writer and the chain.

-- name: events
CREATE TABLE events (
    partition   integer     NOT NULL CHECK (partition >= 0),
    seq         bigint      NOT NULL CHECK (seq > 0),
    entry_id    text        NOT NULL GENERATED ALWAYS AS (entry_ms::text || '-' || entry_n::text) STORED,
    entry_ms    bigint      NOT NULL,
    entry_n     bigint      NOT NULL,
    payout      text        CHECK (payout <> ''),
    e           bytea       NOT NULL,
    m           bytea       NOT NULL,
    hash        bytea       NOT NULL CHECK (length(hash) = 32),
    archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, entry_ms, entry_n),
    UNIQUE (partition, seq, entry_ms)
) PARTITION BY RANGE (entry_ms);

-- name: events_payout
CREATE INDEX events_payout ON events (payout, entry_ms, entry_n) WHERE payout IS NOT NULL;

-- name: events_comment
COMMENT ON TABLE events IS 'One row per log entry, bytes as they were, dense seq per partition, chained by hash; append only';

-- name: refuse_change
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %: the archive is append only', TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;

-- name: events_rows_stay
CREATE TRIGGER events_rows_stay BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- name: events_are_not_truncated
CREATE TRIGGER events_are_not_truncated BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- name: events_month
-- Makes the month's range that holds entry_ms, if it is not there. ATTACH, unlike CREATE ... PARTITION OF, lets others
-- go on reading and writing; the lock is for two partitions' projectors that enter a new month together.
CREATE FUNCTION events_month(at_ms bigint) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $$
DECLARE
    month timestamp := date_trunc('month', to_timestamp(at_ms / 1000) AT TIME ZONE 'UTC');
    name text := 'events_' || to_char(month, '"y"YYYY"m"MM');
    from_ms bigint := extract(epoch FROM month)::bigint * 1000;
    upto_ms bigint := extract(epoch FROM month + interval '1 month')::bigint * 1000;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('streamproc.events_month'));
    IF to_regclass(name) IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING ALL)', name);
        EXECUTE format('ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name, from_ms, upto_ms);
        EXECUTE format('CREATE TRIGGER events_are_not_truncated BEFORE TRUNCATE ON %I'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    END IF;
    RETURN name;
END
$$;

-- name: heads
CREATE TABLE heads (
    partition  integer     PRIMARY KEY CHECK (partition >= 0),
    seq        bigint      NOT NULL DEFAULT 0 CHECK (seq >= 0),
    entry_id   text        NOT NULL DEFAULT '0-0',
    hash       bytea       NOT NULL DEFAULT decode(repeat('00', 32), 'hex') CHECK (length(hash) = 32),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- name: heads_comment
COMMENT ON TABLE heads IS 'Per partition the last archived entry: the projector''s checkpoint, moved with the rows it covers';

-- name: payouts
CREATE TABLE payouts (
    payout      text        PRIMARY KEY,
    partition   integer     NOT NULL,
    account     text        NOT NULL,
    agent       text        NOT NULL,
    identity    text        NOT NULL,
    amount      bigint      NOT NULL,
    currency    text        NOT NULL,
    vendor_url  text        NOT NULL,
    state       text        NOT NULL,
    decision    text,
    reason      text        NOT NULL,
    bank_status text        NOT NULL,
    received_at timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    entry_id    text        NOT NULL,
    record      bytea       NOT NULL
);

-- name: payouts_agent
CREATE INDEX payouts_agent ON payouts (agent, received_at);

-- name: payouts_state
CREATE INDEX payouts_state ON payouts (state, received_at);

-- name: payouts_comment
COMMENT ON TABLE payouts IS 'A payout as the fold of its events; record is the whole of it as JSON bytes; amount in paise';

-- name: audit
CREATE TABLE audit (
    id       text        PRIMARY KEY,
    payout   text,
    agent    text        NOT NULL,
    at       timestamptz NOT NULL,
    kind     text        NOT NULL CHECK (kind IN
        ('decision', 'review', 'command', 'confirmation', 'settlement', 'policy', 'alert')),
    decision text,
    reason   text        NOT NULL,
    actor    text        NOT NULL,
    amount   bigint,
    data     jsonb       NOT NULL
);

-- name: audit_payout
CREATE INDEX audit_payout ON audit (payout, at) WHERE payout IS NOT NULL;

-- name: audit_agent
CREATE INDEX audit_agent ON audit (agent, at);

-- name: audit_at
CREATE INDEX audit_at ON audit (at);

-- name: audit_comment
COMMENT ON TABLE audit IS 'A row per decision, review, command, confirmation, settlement, policy change and alert; id is partition:entry:index';

-- name: budgets
CREATE TABLE budgets (
    partition   integer NOT NULL,
    scope       text    NOT NULL,
    window_name text    NOT NULL,
    limit_paise bigint,
    reserved    bigint  NOT NULL CHECK (reserved >= 0),
    committed   bigint  NOT NULL CHECK (committed >= 0),
    PRIMARY KEY (partition, scope, window_name)
);

-- name: budgets_scope
CREATE INDEX budgets_scope ON budgets (scope, window_name);

-- name: budgets_comment
COMMENT ON TABLE budgets IS 'Paise reserved and committed per budget window; limit_paise as the last reservation saw it, null is no limit';

-- name: reader_role
-- Reading is for people and dashboards. Where this role may not make roles, the owner grants by hand.
DO $$
BEGIN
    CREATE ROLE streamproc_reader NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
    NULL;
END
$$;

-- name: reader_grants
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'streamproc_reader') THEN
        GRANT SELECT ON events, heads, payouts, audit, budgets TO streamproc_reader;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;

-- name: archive_grants
REVOKE UPDATE, DELETE, TRUNCATE ON events FROM PUBLIC;
