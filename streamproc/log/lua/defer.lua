#!lua
-- Put entries off: they stay pending in the group and are taken up again when due.
-- KEYS[1] zset retries of the group   KEYS[2] hash tries of the group
-- ARGV for each entry: entry id, delay (µs), 1 if this attempt counts
-- Returns the attempts counted so far, for each entry.  O(entries * log n).
-- Resent after a lost reply it counts an attempt twice at worst: a limit is reached one try early.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local reply = {}
for i = 1, #ARGV, 3 do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[i + 1])), ARGV[i])
  if ARGV[i + 2] == '1' then
    reply[#reply + 1] = redis.call('HINCRBY', KEYS[2], ARGV[i], 1)
  else
    reply[#reply + 1] = tonumber(redis.call('HGET', KEYS[2], ARGV[i]) or '0')
  end
end
return reply
