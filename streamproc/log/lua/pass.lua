#!lua
-- Let a group pass over what it wrote itself, as far as that comes next.
-- KEYS[1] stream log   KEYS[2] zset runs of the group
-- ARGV[1] group
-- Returns how many entries.  NOLOG where there is no log.
-- Why Lua: where the group is, what comes next and that it is passed over are one step.
-- O(runs, PASSED_MAX at most). Safe to resend: it then passes over what else there is.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
return (pass_own(KEYS[1], ARGV[1], KEYS[2]))
