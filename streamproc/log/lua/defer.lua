#!lua
-- Defer entries: they stay pending in the group and are retried when due, after a longer delay each time.
-- KEYS[1] stream log   KEYS[2] zset retries of the group   KEYS[3] hash tries of the group   KEYS[4] hash retry clock (retry_clock.lua)
-- ARGV[1] group   ARGV[2] consumer that must have them, or '' for any
-- ARGV[3] first backoff (µs)   ARGV[4] longest backoff of a failed attempt (µs)   ARGV[5] longest of a wait for a dependency (µs)
-- then for each entry: entry id, least delay (µs), 1 if it is a failed attempt of its own, share of the backoff in thousandths (jitter),
--   1 if nothing was sent outside for it so far: that is noted, for who takes it up (due_retries.lua), with this server and how
--   often the entry was deferred, since the note holds for this deferral alone. One that was taken up again gets none (take_up.lua),
--   nor one that was delivered more often than deferred: somebody else may have sent something, while the caller stood still.
--   0 if something may have been sent: then it gets none any more, since a deferral may come late. '' where nobody asks
-- Returns for each entry how often it was deferred so far, by failed attempts or by waits, which are counted apart; 0 where it is
--   finished or another consumer has it: deferred, it would be taken from that consumer when it is due.
-- O(entries * log n).
-- Resent after a lost reply it counts an attempt twice at worst: the limit is reached one try early, and the note does not hold.
local first, longest, longest_wait = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if (#ARGV - 5) % 5 ~= 0 then wrong('it has a part of an entry') end
for i = 3, 5 do whole(ARGV[i], 0, US_MAX) end
local rows = {} -- of XPENDING: id, consumer, idle time, deliveries
for i = 6, #ARGV, 5 do
  if not string.find(ARGV[i], '^%d+%-%d+$') then wrong('it has no such entry') end
  whole(ARGV[i + 1], 0, US_MAX)
  whole(ARGV[i + 3], 0, 1000)
  rows[i] = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
end
redis.call('HLEN', KEYS[3])
local now, ahead = retry_clock(KEYS[2], KEYS[4])
redis.call('HSET', KEYS[4], 'last', int(now), 'ahead', int(ahead))
local reply, server = {}, nil
for i = 6, #ARGV, 5 do
  local row = rows[i]
  if ARGV[2] ~= '' and not (row and row[2] == ARGV[2]) then
    reply[#reply + 1] = 0
  else
    local is_attempt = ARGV[i + 2] == '1'
    local n = redis.call('HINCRBY', KEYS[3], is_attempt and ARGV[i] or ARGV[i] .. ':waits', 1)
    local backoff = math.min(first * 2 ^ math.min(n - 1, 30), is_attempt and longest or longest_wait)
    local delay = math.max(tonumber(ARGV[i + 1]), backoff * tonumber(ARGV[i + 3]) / 1000)
    redis.call('ZADD', KEYS[2], string.format('%.0f', now + delay), ARGV[i])
    if ARGV[i + 4] == '1' then
      local tries = redis.call('HMGET', KEYS[3], ARGV[i], ARGV[i] .. ':waits')
      local deferred = (tries[1] or 0) + (tries[2] or 0)
      if row and row[4] == deferred then
        server = server or this_server()
        redis.call('HSETNX', KEYS[3], ARGV[i] .. ':unsent', server .. ' ' .. int(deferred))
      end
    elseif ARGV[i + 4] == '0' then
      redis.call('HSET', KEYS[3], ARGV[i] .. ':unsent', '')
    end
    reply[#reply + 1] = n
  end
end
return reply
