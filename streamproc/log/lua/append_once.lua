#!lua
-- Append producer deliveries to the log, each at most once.
-- KEYS[1]      stream  the partition's log
-- KEYS[2..]    string  seen keys, those of the first delivery first
-- ARGV[1]      s       how long a delivery is remembered
-- then for each delivery: number of its seen keys, `e`, `m`
-- Returns for each delivery: entry id, 1 if appended now or 0 if seen before (any of its keys known).
-- NOLOG where there is no log: XADD would begin a new log in the place of a lost one.
-- O(deliveries). Safe to resend: a second run finds the keys and answers with the same ids.
local AT_ONCE = 1000 -- keys in one EXISTS: Lua passes at most some 8,000 arguments
if #ARGV < 4 or (#ARGV - 1) % 3 ~= 0 then
  return redis.error_reply('ERR append_once: wrong number of arguments')
end
local lost = no_log(KEYS[1])
if lost then return lost end
whole(ARGV[1], 1, S_MAX)
local keys, known = 1, {}
for i = 2, #ARGV, 3 do keys = keys + whole(ARGV[i], 0, #KEYS - keys) end
if keys ~= #KEYS then wrong('it has keys of no delivery') end
-- Nearly always no key is known, and one EXISTS for all says so. Else all are read before the first write, so that a key of
-- a wrong type fails the whole call.
local some = 0
for k = 2, keys, AT_ONCE do
  some = some + redis.call('EXISTS', unpack(KEYS, k, math.min(k + AT_ONCE - 1, keys)))
end
if some > 0 then
  for k = 2, keys do known[KEYS[k]] = redis.call('GET', KEYS[k]) end
end
local reply, key = {}, 2
for i = 2, #ARGV, 3 do
  local n, id = tonumber(ARGV[i]), false
  for k = key, key + n - 1 do
    id = id or known[KEYS[k]]
  end
  local new = 0
  if not id then
    id = redis.call('XADD', KEYS[1], '*', 'e', ARGV[i + 1], 'm', ARGV[i + 2])
    for k = key, key + n - 1 do
      redis.call('SET', KEYS[k], id, 'EX', ARGV[1])
      known[KEYS[k]] = id
    end
    new = 1
  end
  key = key + n
  reply[#reply + 1] = id
  reply[#reply + 1] = new
end
return reply
