#!lua
-- Fire timers that are due: each becomes a log entry and is removed, in one step.
-- KEYS[1] stream log   KEYS[2] zset timers (score µs, member the entry's `e`)
-- ARGV[1] most timers to fire
-- Returns the number fired; NOLOG where there is no log.  O(limit * log n). Safe to resend: a fired timer is gone.
local lost = no_log(KEYS[1])
if lost then return lost end
whole(ARGV[1], 1, 2 ^ 31)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', int(now_us()), 'LIMIT', 0, ARGV[1])
for _, e in ipairs(due) do
  redis.call('XADD', KEYS[1], '*', 'e', e, 'm', '{"by":"timers"}')
  redis.call('ZREM', KEYS[2], e)
end
return #due
