#!lua
-- Put entries off: they stay pending in the group and are taken up again when due, later each time.
-- KEYS[1] zset retries of the group   KEYS[2] hash tries of the group
-- ARGV[1] backoff of the first time (µs)   ARGV[2] longest backoff of an attempt   ARGV[3] longest of a wait (µs)
-- then for each entry: entry id, least delay (µs), 1 if this attempt counts, share of the backoff in thousandths (jitter)
-- Returns for each entry how often it was put off so far: attempts that counted, or waits that did not.
-- O(entries * log n).
-- Resent after a lost reply it counts an attempt twice at worst: a limit is reached one try early.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local first, longest, longest_wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if (#ARGV - 3) % 4 ~= 0 then wrong('it has a part of an entry') end
for i = 1, 3 do whole(ARGV[i], 0, US_MAX) end
for i = 4, #ARGV, 4 do
  whole(ARGV[i + 1], 0, US_MAX)
  whole(ARGV[i + 3], 0, 1000)
end
redis.call('ZCARD', KEYS[1])
local reply = {}
for i = 4, #ARGV, 4 do
  local counts = ARGV[i + 2] == '1'
  local n = redis.call('HINCRBY', KEYS[2], counts and ARGV[i] or ARGV[i] .. ':waits', 1)
  local backoff = math.min(first * 2 ^ math.min(n - 1, 30), counts and longest or longest_wait)
  local delay = math.max(tonumber(ARGV[i + 1]), backoff * tonumber(ARGV[i + 3]) / 1000)
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + delay), ARGV[i])
  reply[#reply + 1] = n
end
return reply
