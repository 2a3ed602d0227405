#!lua
-- The revision of the policies in force, from a server that takes writes.
-- KEYS[1] hash policy
-- ARGV    none
-- Returns the revision.
-- Why Lua: HGET is answered by a server that was demoted too, which may not know of a freeze. A script that might write is refused
--   there, and where memory or disk is full; what is about to be done outside could not be recorded then either.
-- O(1). Changes nothing.
return redis.call('HGET', KEYS[1], 'rev') or '0'
