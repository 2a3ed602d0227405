#!lua
-- The floor's commit: rate windows, day budgets, decision events and acknowledgements of one batch.
-- KEYS[1] stream in   KEYS[2] stream of decisions   then two for each agent: zset rate, string budget
-- ARGV[1] group, or '' to acknowledge later   ARGV[2] now (µs)   ARGV[3] window (µs)   ARGV[4] payouts in a window
-- ARGV[5] number of agents, then each one's day limit (paise); then for each payout:
--   entry id, agent's number, payout id, amount (paise), reason of a rejection or '', decision JSON without its end
-- Returns for each payout: 0 approved, 1 rate limited, 2 over the day's limit, 3 rejected for the reason given.
-- Why Lua: one round trip for a batch. It is not safe to resend, which a floor need not be.
local DAY_KEPT_S = 90000
local ENDS = {
  [0] = ',"decision":"APPROVED","reason":"POLICY_OK"}',
  ',"decision":"REJECTED","reason":"RATE_LIMITED"}',
  ',"decision":"REJECTED","reason":"LIMIT_EXCEEDED"}',
}
local call = redis.call
local group, now, window, most, agents = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local cut = string.format('%.0f', now - window)
local counts, limits, spent, added, slots = {}, {}, {}, {}, {}
for a = 1, agents do
  local rate = KEYS[1 + 2 * a]
  call('ZREMRANGEBYSCORE', rate, '-inf', cut)
  counts[a] = call('ZCARD', rate)
  limits[a] = tonumber(ARGV[5 + a])
  spent[a] = tonumber(call('GET', KEYS[2 + 2 * a]) or '0')
  added[a], slots[a] = 0, {}
end

local codes, ids, n, out = {}, {}, 0, KEYS[2]
for i = 6 + agents, #ARGV, 6 do
  local code, reason = 3, ARGV[i + 4]
  n = n + 1
  if reason == '' then
    local a = tonumber(ARGV[i + 1])
    if counts[a] >= most then
      code = 1
    else
      counts[a] = counts[a] + 1
      local z = slots[a]
      local k = #z
      z[k + 1], z[k + 2] = ARGV[2], ARGV[i + 2]
      local sum = added[a] + tonumber(ARGV[i + 3])
      if spent[a] + sum > limits[a] then
        code = 2
      else
        code, added[a] = 0, sum
      end
    end
  end
  call('XADD', out, '*', 'd', ARGV[i + 5] .. (ENDS[code] or ',"decision":"REJECTED","reason":"' .. reason .. '"}'))
  codes[n], ids[n] = code, ARGV[i]
end

for a = 1, agents do
  if #slots[a] > 0 then
    call('ZADD', KEYS[1 + 2 * a], unpack(slots[a]))
    call('EXPIRE', KEYS[1 + 2 * a], math.ceil(window / 1000000) + 1)
  end
  if added[a] > 0 then
    call('INCRBY', KEYS[2 + 2 * a], string.format('%.0f', added[a]))
    call('EXPIRE', KEYS[2 + 2 * a], DAY_KEPT_S)
  end
end
if group ~= '' then call('XACK', KEYS[1], group, unpack(ids)) end
return codes
