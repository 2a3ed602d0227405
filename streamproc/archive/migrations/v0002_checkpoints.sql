-- The views leave Alembic: each is a fold with its own DDL in projections/, made by `streamproc migrate` where it is
-- missing and rebuilt from the archive. Those of revision 0001 are dropped; the projector fills the new ones.

-- name: drop_payouts
DROP TABLE payouts;

-- name: drop_audit
DROP TABLE audit;

-- name: drop_budgets
DROP TABLE budgets;

-- name: archive_identity
-- Names this archive in every checkpoint, so that one archive's checkpoint is no other's.
CREATE TABLE archive_identity (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    id   uuid    NOT NULL DEFAULT gen_random_uuid(),
    made timestamptz NOT NULL DEFAULT now()
);

-- name: archive_identity_row
INSERT INTO archive_identity DEFAULT VALUES;

-- name: checkpoints
CREATE TABLE checkpoints (
    partition integer     NOT NULL CHECK (partition >= 0),
    size      bigint      NOT NULL CHECK (size > 0),
    entry_id  text        NOT NULL,
    hash      bytea       NOT NULL CHECK (length(hash) = 32),
    root      bytea       NOT NULL CHECK (length(root) = 32),
    frontier  bytea       NOT NULL CHECK (length(frontier) % 32 = 0),
    note      text        NOT NULL,
    made_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, size)
);

-- name: checkpoints_comment
COMMENT ON TABLE checkpoints IS 'Signed: the Merkle root over the first size entries of a partition; note is the signed text as published';

-- name: checkpoints_rows_stay
CREATE TRIGGER checkpoints_rows_stay BEFORE UPDATE OR DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- name: checkpoints_are_not_truncated
CREATE TRIGGER checkpoints_are_not_truncated BEFORE TRUNCATE ON checkpoints FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- name: checkpoints_published
-- How far the checkpoints were handed to the place outside this database.
CREATE TABLE checkpoints_published (
    partition integer PRIMARY KEY CHECK (partition >= 0),
    size      bigint  NOT NULL
);

-- name: projector_role
-- What a projector may do: add to the archive, never change it. Where this role may not make roles, the owner grants.
DO $$
BEGIN
    CREATE ROLE streamproc_projector NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
    NULL;
END
$$;

-- name: grants
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'streamproc_reader') THEN
        GRANT SELECT ON archive_identity, checkpoints, checkpoints_published TO streamproc_reader;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'streamproc_projector') THEN
        GRANT SELECT, INSERT ON events, checkpoints TO streamproc_projector;
        GRANT SELECT, INSERT, UPDATE ON heads, checkpoints_published TO streamproc_projector;
        GRANT SELECT ON archive_identity TO streamproc_projector;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$$;

-- name: checkpoint_grants
REVOKE UPDATE, DELETE, TRUNCATE ON checkpoints FROM PUBLIC;
