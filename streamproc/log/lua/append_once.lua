#!lua
-- Append producer deliveries to the log, each at most once.
-- KEYS[1]      stream  the partition's log
-- KEYS[2..]    string  seen keys, those of the first delivery first
-- ARGV[1]      s       how long a delivery is remembered
-- then for each delivery: number of its seen keys, `e`, `m`
-- Returns for each delivery: entry id, 1 if appended now or 0 if seen before (any of its keys known).
-- NOLOG where there is no log: XADD would begin a new log in the place of a lost one.
-- O(deliveries). Safe to resend: a second run finds the keys and answers with the same ids.
local AT_ONCE = 1000 -- keys in one command: Lua passes at most some 8,000 arguments
if #ARGV < 4 or (#ARGV - 1) % 3 ~= 0 then
  return redis.error_reply('ERR append_once: wrong number of arguments')
end
local lost = no_log(KEYS[1])
if lost then return lost end
local forgotten_ms = int(math.floor(now_us() / 1000) + whole(ARGV[1], 1, S_MAX) * 1000)
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
-- Whether the server has MSETEX (Valkey 9.1, Redis 8.4) and this user may call it. One for all keys takes a quarter less of the
-- whole call than a SET for each.
local function has_msetex(a_key)
  local is_known, may = pcall(redis.acl_check_cmd, 'MSETEX', 1, a_key, '', 'PXAT', 1)
  return is_known and may
end
local at_once = keys > 1 and has_msetex(KEYS[2])
local seen, n_seen = {}, 0 -- keys and ids that MSETEX has still to write, and how many places of these are taken
local function write_seen()
  seen[n_seen + 1], seen[n_seen + 2] = 'PXAT', forgotten_ms
  redis.call('MSETEX', n_seen / 2, unpack(seen, 1, n_seen + 2))
  n_seen = 0
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
      if at_once then
        seen[n_seen + 1], seen[n_seen + 2], n_seen = KEYS[k], id, n_seen + 2
        if n_seen >= 2 * AT_ONCE then write_seen() end
      else
        redis.call('SET', KEYS[k], id, 'PXAT', forgotten_ms)
      end
      known[KEYS[k]] = id
    end
    new = 1
  end
  key = key + n
  reply[#reply + 1] = id
  reply[#reply + 1] = new
end
if n_seen > 0 then write_seen() end
return reply
