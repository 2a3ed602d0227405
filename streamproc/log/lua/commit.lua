#!lua
-- Hand over: acknowledge inputs and append their outputs, each input exactly once.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] zset timers   KEYS[4] stream dead letters
-- KEYS[5] zset retries of the group   KEYS[6] hash tries of the group
-- KEYS[7..] hash payouts and budgets; ARGV names them by index
-- ARGV[1] group; then for each input:
--   entry id, index of its payout's hash or 0, version seen (or -1: write without a check),
--   record JSON or '' (no change), s to keep a finished record or 0, `e` or '' (no output),
--   `m` without its closing brace, settlement 'committed' | 'released' | '',
--   1 if the entry was taken from retries or claims, dead letter's JSON `problem` or '',
--   number of budget hashes to settle, their indexes, number of timers, then score (µs) and member of each
-- Returns for each input: 1 done, 0 acknowledged earlier (nothing written), 2 the payout has moved on.
-- Why Lua: XACK answers 1 to one caller only; whoever gets it appends, in the same step.
-- O(inputs). Safe to resend: a second run finds the inputs acknowledged or the payouts moved on.
local function int(x) return string.format('%.0f', x) end

local function settle(payout, wanted, indexes)
  local f = redis.call('HMGET', payout, 'q', 'am')
  local held, amount = f[1], tonumber(f[2] or '0')
  local allowed = held == 'reserved' or (held == 'committed' and wanted == 'released')
  if not allowed then return false end
  for _, index in ipairs(indexes) do
    local key = KEYS[index]
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, held == 'reserved' and 'r' or 'c', int(-amount))
      if wanted == 'committed' then redis.call('HINCRBY', key, 'c', int(amount)) end
    end
  end
  redis.call('HSET', payout, 'q', wanted)
  return true
end

local function dead_letter(id, problem)
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local e, m = '[]', '{}'
  if entry then
    e, m = entry[2][2], entry[2][4]
  end
  redis.call('XADD', KEYS[4], '*', 'entry', id, 'group', ARGV[1], 'e', e, 'm', m, 'problem', problem)
end

local reply, i = {}, 2
while i <= #ARGV do
  local id, payout, version = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local windows = tonumber(ARGV[i + 10])
  local t = i + 11 + windows
  local timers = tonumber(ARGV[t])
  local status = 1
  if payout > 0 and version ~= '-1' and (redis.call('HGET', KEYS[payout], 'v') or '0') ~= version then
    status = 2
  elseif redis.call('XACK', KEYS[1], ARGV[1], id) == 0 then
    status = 0
  else
    local m = ARGV[i + 6]
    if ARGV[i + 7] ~= '' then
      local indexes = {}
      for w = 1, windows do indexes[w] = tonumber(ARGV[i + 10 + w]) end
      if settle(KEYS[payout], ARGV[i + 7], indexes) then
        m = m .. ',"settled":' .. int(redis.call('INCR', KEYS[2]))
      end
    end
    if ARGV[i + 3] ~= '' then
      redis.call('HSET', KEYS[payout], 'v', int(tonumber(redis.call('HGET', KEYS[payout], 'v') or '0') + 1), 's', ARGV[i + 3])
      if ARGV[i + 4] ~= '0' then redis.call('EXPIRE', KEYS[payout], ARGV[i + 4]) end
    end
    if ARGV[i + 5] ~= '' then redis.call('XADD', KEYS[1], '*', 'e', ARGV[i + 5], 'm', m .. '}') end
    if ARGV[i + 9] ~= '' then dead_letter(id, ARGV[i + 9]) end
    if timers > 0 then
      for k = t + 1, t + 2 * timers, 2 do redis.call('ZADD', KEYS[3], ARGV[k], ARGV[k + 1]) end
    end
    if ARGV[i + 8] == '1' then
      redis.call('ZREM', KEYS[5], id)
      redis.call('HDEL', KEYS[6], id)
    end
  end
  reply[#reply + 1] = status
  i = t + 1 + 2 * timers
end
return reply
