#!lua
-- Take up deferred entries that are due. Each stays in the set, leased, until its commit removes it:
-- a worker that dies with it loses nothing.
-- KEYS[1] stream log   KEYS[2] zset retries of the group   KEYS[3] hash tries of the group
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] lease (µs), ARGV[4] most entries
-- Returns the entries as XCLAIM gives them.  O(limit * log n). Safe to resend: at worst a lease is spent.
whole(ARGV[3], 0, US_MAX)
whole(ARGV[4], 1, 2 ^ 31)
redis.call('HLEN', KEYS[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[4])
local reply = {}
for _, id in ipairs(due) do
  local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)
  if entry[1] then
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + tonumber(ARGV[3])), id)
    reply[#reply + 1] = entry[1]
  else
    -- acknowledged meanwhile, by one who did not know that it was put off, or who only skipped it
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id, id .. ':waits')
  end
end
return reply
