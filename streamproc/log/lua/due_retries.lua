#!lua
-- Take up deferred entries that are due. They are put off no longer: they are in the consumer's hands like any other
-- entry, so a worker that dies with one loses nothing, and others find it as they find what it had read.
-- KEYS[1] stream log   KEYS[2] zset retries of the group   KEYS[3] hash tries of the group
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] most entries
-- Returns the entries as XCLAIM gives them.  O(limit * log n).
-- Safe to resend: what a lost reply named is read again with all that is in the consumer's hands.
whole(ARGV[3], 1, 2 ^ 31)
redis.call('HLEN', KEYS[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[3])
local reply = {}
for _, id in ipairs(due) do
  local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)
  redis.call('ZREM', KEYS[2], id)
  if entry[1] then
    reply[#reply + 1] = entry[1]
  else
    -- acknowledged meanwhile, by one who did not know that it was put off, or who only skipped it
    redis.call('HDEL', KEYS[3], id, id .. ':waits')
  end
end
return reply
