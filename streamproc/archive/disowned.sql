-- name: disowning
-- It is about no payout; the tag is looked for in the bytes.
SELECT e, m FROM events
WHERE partition = $1 AND seq > $2 AND seq <= $3
  AND payout IS NULL AND position('"entry.disowned"'::bytea IN e) > 0
ORDER BY seq;
