#!lua
-- Move a poller's cursor, unless it was set back since the poller knew it: a recovery has the list read from the archive's end.
-- KEYS[1] string cursor, Unix s
-- ARGV[1] where the poller found or left it, '' for nowhere   ARGV[2] where it is to be
-- Returns 1, or 0 if it is before that by now, is gone, or is there where there was none: then it stays as it is.
-- O(1). Resent after a lost reply it may answer 0: the next pass begins where this one has moved it.
if #KEYS ~= 1 or #ARGV ~= 2 then wrong('it has one key and two arguments') end
local known = ARGV[1] ~= '' and whole(ARGV[1], 0, S_MAX)
whole(ARGV[2], 0, S_MAX)
local found = tonumber(redis.call('GET', KEYS[1]) or '')
if known and (not found or found < known) or found and not known then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
