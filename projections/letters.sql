-- name: table
CREATE TABLE letters (
    partition  integer NOT NULL,
    seq        bigint  NOT NULL,
    place      integer NOT NULL,
    group_name text    NOT NULL,
    entry_id   text    NOT NULL,
    action     text    NOT NULL CHECK (action IN ('aside', 'redrive', 'discard')),
    PRIMARY KEY (partition, seq, place)
);

-- name: comment
COMMENT ON TABLE letters IS 'A row per entry that a group set aside, and per dead letter that a person closed; built by streamproc recover, and removed';

-- name: open
-- Entries whose last word is that they were set aside: seq is that of the entry that says so.
SELECT seq, group_name, entry_id FROM (
    SELECT DISTINCT ON (group_name, entry_id) seq, group_name, entry_id, action FROM letters
    WHERE partition = $1
    ORDER BY group_name, entry_id, seq DESC
) AS last WHERE action = 'aside'
ORDER BY seq;
