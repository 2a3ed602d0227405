#!lua
-- Move a group past its own outputs, as far as they come next (own.lua).
-- KEYS[1] stream log   KEYS[2] zset runs of the group
-- ARGV[1] group
-- Returns how many entries were passed over.  NOLOG where there is no log.
-- Why Lua: reading the group's place, checking what comes next and moving on are one step.
-- O(runs, PASSED_MAX at most). Safe to resend: it goes on from where the first run ended.
local lost = no_log(KEYS[1])
if lost then return lost end
return (pass_own(KEYS[1], ARGV[1], KEYS[2]))
