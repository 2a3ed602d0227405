-- name: table
CREATE TABLE policies (
    partition integer     NOT NULL,
    scope     text        NOT NULL,
    version   integer     NOT NULL CHECK (version > 0),
    at        timestamptz NOT NULL,
    by_whom   text        NOT NULL,
    why       text        NOT NULL,
    before    jsonb,
    after     jsonb,
    effective jsonb,
    seq       bigint      NOT NULL,
    confirmed_by text     NOT NULL,
    channel   text        NOT NULL,
    confirmed_channel text NOT NULL,
    PRIMARY KEY (partition, scope, version)
);

-- name: comment
COMMENT ON TABLE policies IS 'A row per version of a scope; the highest version is in force, and after is null where that removed the scope';
