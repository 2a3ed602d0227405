-- Lines are only ever added. The event itself is not repeated here: it is in the archive, at (partition, seq), and
-- `place` is its index there.

-- name: table
CREATE TABLE audit (
    id        text        NOT NULL,
    partition integer     NOT NULL,
    seq       bigint      NOT NULL,
    place     integer     NOT NULL,
    payout    text,
    agent     text        NOT NULL,
    vendor    text        NOT NULL,
    at        timestamptz NOT NULL,
    kind      text        NOT NULL CHECK (kind IN
        ('decision', 'review', 'command', 'confirmation', 'settlement', 'policy', 'alert')),
    decision  text,
    reason    text        NOT NULL,
    actor     text        NOT NULL,
    amount    bigint,
    trace_id  text
);

-- name: table_statistics
-- What no query looks for by itself. Counting its values was most of an ANALYZE.
ALTER TABLE audit ALTER COLUMN id SET STATISTICS 0, ALTER COLUMN place SET STATISTICS 0,
    ALTER COLUMN actor SET STATISTICS 0, ALTER COLUMN amount SET STATISTICS 0, ALTER COLUMN trace_id SET STATISTICS 0;

-- name: comment
COMMENT ON TABLE audit IS 'A row per decision, review, command, confirmation, settlement, policy change and alert; id is partition:entry:index, the event is in events at (partition, seq); trace_id is the payout''s trace in hex';

-- name: index_pkey
-- The table's key. Made last as all indexes are: a rebuild copies millions of lines into a table without any.
CREATE UNIQUE INDEX audit_pkey ON audit (partition, seq, place);

-- name: key
ALTER TABLE audit ADD CONSTRAINT audit_pkey PRIMARY KEY USING INDEX audit_pkey;

-- name: index_payout
-- A payout has few lines, each of its own time: to look for equal index rows before a page is split finds none.
CREATE INDEX audit_payout ON audit (payout, at) WITH (deduplicate_items = off) WHERE payout IS NOT NULL;

-- name: index_agent
CREATE INDEX audit_agent ON audit (agent, at);

-- name: index_at
CREATE INDEX audit_at ON audit (at);

-- name: index_vendor
CREATE INDEX audit_vendor ON audit (vendor, at);

-- name: index_reason
-- Of a reason that is long (what was wrong with a payload), its beginning: an index row has a limit. Not what nearly every
-- payout has, and an index row with it: a page of those is found by time, they are among the last lines at any time.
CREATE INDEX audit_reason ON audit (left(reason, 64), at)
WHERE left(reason, 64) NOT IN ('POLICY_OK', 'approve: done', 'processed', 'committed');

-- name: index_decision
-- Of those that are not the rule, as with reasons.
CREATE INDEX audit_decision ON audit (decision, at) WHERE decision <> 'APPROVED';

-- name: index_seldom
CREATE INDEX audit_seldom ON audit (kind, at) WHERE kind IN ('review', 'policy', 'alert');
