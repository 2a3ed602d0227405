#!lua
-- Fire timers that are due: each becomes a log entry and is removed, in one step.
-- KEYS[1] stream log   KEYS[2] zset timers (score µs, member the entry's `e`)
-- ARGV[1] most timers to fire
-- Returns the number fired; NOLOG where there is no log.  O(limit * log n). Safe to resend: a fired timer is gone.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
whole(ARGV[1], 1, 2 ^ 31)
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, e in ipairs(due) do
  redis.call('XADD', KEYS[1], '*', 'e', e, 'm', '{"by":"timers"}')
  redis.call('ZREM', KEYS[2], e)
end
return #due
