#!lua
-- Count alerts: of many that are alike the first is told at once, the others together in a digest when that is due.
-- KEYS[1] zset open digests (score µs: when it is due)   KEYS[2] hash, KEYS[3] set of the overflow digest
-- KEYS[4..] hash and set of each digest that an alert may belong to; ARGV names the hash by index, the set follows it
-- ARGV[1] µs from a digest's first alert until it is due   ARGV[2] most open digests; an alert for one more goes to the overflow digest
-- ARGV[3] most alerts counted exactly in one digest   ARGV[4] most examples kept   ARGV[5] ms after which an untold digest is forgotten
-- ARGV[6] name of the overflow digest
-- then for each alert: index of its hash, name of its digest, what the digest is about, what the alert is about (its id), paise
-- Returns for each alert 1 (tell it now) or 0 (it is counted, or was before).
-- O(alerts). Safe to resend: a digest's first alert is known as the first, and each counted one as counted.
local call, tonumber = redis.call, tonumber
local open_max, exact_max, examples_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if (#ARGV - 6) % 5 ~= 0 then wrong('it has a part of an alert') end
for i = 1, 4 do whole(ARGV[i], 0, US_MAX) end
local due = int(now_us() + tonumber(ARGV[1]))
whole(ARGV[5], 0, MS_MAX)
call('ZCARD', KEYS[1])
local function look(index)
  call('HLEN', KEYS[index])
  call('SCARD', KEYS[index + 1])
end
look(2)
for i = 7, #ARGV, 5 do
  whole(ARGV[i + 4], 0, US_MAX)
  look(whole(ARGV[i], 4, #KEYS - 1))
end
local reply = {}
for i = 7, #ARGV, 5 do
  local index, name, about, id, paise = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local hash, seen = KEYS[index], KEYS[index + 1]
  if call('EXISTS', hash) == 0 and call('ZCARD', KEYS[1]) >= open_max then
    hash, seen, name, about = KEYS[2], KEYS[3], ARGV[6], ''
  end
  local tell = 0
  if call('EXISTS', hash) == 0 then
    call('HSET', hash, 'about', about, 'first', id, 'n', '0', 'sum', '0', 'more', '0', 'examples', '0')
    call('ZADD', KEYS[1], due, name)
    tell = 1
  elseif call('HGET', hash, 'first') == id then
    tell = 1
  elseif call('SISMEMBER', seen, id) == 1 then
    tell = 0
  elseif call('SCARD', seen) >= exact_max then
    call('HSET', hash, 'more', '1')
  else
    call('SADD', seen, id)
    call('HINCRBY', hash, 'n', 1)
    call('HINCRBY', hash, 'sum', paise)
    local kept = tonumber(call('HGET', hash, 'examples') or '0')
    if kept < examples_max then call('HSET', hash, 'examples', kept + 1, 'example' .. (kept + 1), id) end
  end
  call('PEXPIRE', hash, ARGV[5])
  if call('EXISTS', seen) == 1 then call('PEXPIRE', seen, ARGV[5]) end
  reply[#reply + 1] = tell
end
return reply
