"""The archive: every log entry in Postgres, exactly once, in order, chained by hashes, append only."""
