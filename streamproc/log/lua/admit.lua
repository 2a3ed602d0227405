#!lua
-- Admit payouts: take rate slots and reserve budget, each part once per payout, for good.
-- KEYS[1]    string  the partition's dense counter of admissions and settlements
-- KEYS[2..]  hash payouts, zset rates, hash budgets; ARGV names them by index
-- ARGV[1]    s       how long a budget is kept after its window ended (or after now, if that is later)
-- then for each payout:
--   index of its hash, payout id, amount (paise), received at (µs),
--   index of the rate zset or 0, count, window (µs), 1 to go on when limited,
--   number of budget windows or -1, windows as JSON (kept as evidence), then for each window:
--     index of its hash, limit (paise) or -1, end (Unix s)
-- Returns for each payout: rate answer 'number used limited' or '', budget answer
--   'number amount exceeded reserved committed ...' or '', windows JSON if recorded earlier else ''.
-- Why Lua: read, compare and add are one step; everything is read and checked before the first write.
-- O(payouts * windows + log n of each rate set). Safe to resend: a recorded answer is given again.
local function int(x) return string.format('%.0f', x) end

local BACKLOG_S = 86400 -- windows go by the time received; a backlog of a day still finds its slots
local keep = tonumber(ARGV[1])
local now = tonumber(redis.call('TIME')[1])
local number = tonumber(redis.call('GET', KEYS[1]) or '0')
local first = number
local payouts, rates, budgets, reply = {}, {}, {}, {}

local function payout_of(index)
  local known = payouts[index]
  if not known then
    local f = redis.call('HMGET', KEYS[index], 'ra', 'ba', 'w')
    known = { ra = f[1] or '', ba = f[2] or '', w = f[3] or '', old_w = f[3] or '' }
    payouts[index] = known
  end
  return known
end

-- One agent's slots: those stored, and those added by this batch (times never fall).
local function rate_of(index, window, at)
  local r = rates[index]
  if not r then
    local newest = redis.call('ZREVRANGE', KEYS[index], 0, 0, 'WITHSCORES')
    r = { newest = tonumber(newest[2] or '0'), now = 0, window = window, cut = 0, stored = 0, oldest = -1, added = {}, from = 1, z = {} }
    rates[index] = r
  end
  -- A late one counts as of the newest slot, so that no window ever holds more than it may.
  r.now = at > r.newest and at or r.newest
  if r.now - window > r.cut then r.cut = r.now - window end
  if r.oldest == -1 or r.oldest <= r.cut then
    r.stored = redis.call('ZCOUNT', KEYS[index], '(' .. int(r.cut), '+inf')
    local oldest = redis.call('ZRANGEBYSCORE', KEYS[index], '(' .. int(r.cut), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    r.oldest = tonumber(oldest[2] or '9007199254740992')
  end
  while r.from <= #r.added and r.added[r.from] <= r.cut do r.from = r.from + 1 end
  return r
end

local function budget_of(index)
  local b = budgets[index]
  if not b then
    local f = redis.call('HMGET', KEYS[index], 'r', 'c')
    b = { r = tonumber(f[1] or '0'), c = tonumber(f[2] or '0'), new = not f[1], add = 0 }
    budgets[index] = b
  end
  return b
end

local i = 2
while i <= #ARGV do
  local amount, at = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local rate_index, windows = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 8])
  local p = payout_of(tonumber(ARGV[i]))
  local ask_rate = rate_index > 0 and p.ra == ''
  local ask_budget = windows >= 0 and p.ba == ''
  local limited, mine = false, 0
  if ask_rate then
    local r = rate_of(rate_index, tonumber(ARGV[i + 6]), at)
    local used = r.stored + #r.added - r.from + 1
    limited = used >= tonumber(ARGV[i + 5])
    if not limited then
      r.newest = r.now
      r.added[#r.added + 1] = r.now
      r.z[#r.z + 1] = int(r.now)
      r.z[#r.z + 1] = ARGV[i + 1]
    end
    number = number + 1
    mine = number
    p.ra = int(mine) .. ' ' .. used .. ' ' .. (limited and 1 or 0)
    p.dirty = true
  elseif p.ra ~= '' then
    limited = string.sub(p.ra, -1) == '1'
  end
  if ask_budget and rate_index > 0 and limited and ARGV[i + 7] == '0' then ask_budget = false end
  if ask_budget then
    local exceeded, parts = -1, {}
    for w = 0, windows - 1 do
      local b, limit = budget_of(tonumber(ARGV[i + 10 + 3 * w])), tonumber(ARGV[i + 11 + 3 * w])
      parts[#parts + 1] = int(b.r + b.add)
      parts[#parts + 1] = int(b.c)
      if exceeded < 0 and limit >= 0 and b.r + b.add + b.c + amount > limit then exceeded = w end
    end
    if exceeded < 0 then
      for w = 0, windows - 1 do
        local b = budgets[tonumber(ARGV[i + 10 + 3 * w])]
        b.add = b.add + amount
        b.ends = ARGV[i + 12 + 3 * w]
      end
      p.amount = ARGV[i + 2]
    end
    if mine == 0 then
      number = number + 1
      mine = number
    end
    p.ba = int(mine) .. ' ' .. ARGV[i + 2] .. ' ' .. exceeded .. ' ' .. table.concat(parts, ' ')
    p.w = ARGV[i + 9]
    p.dirty = true
  end
  reply[#reply + 1] = p.ra
  reply[#reply + 1] = p.ba
  reply[#reply + 1] = p.old_w
  i = i + 10 + 3 * (windows > 0 and windows or 0)
end

for index, p in pairs(payouts) do
  if p.dirty then
    redis.call('HSET', KEYS[index], 'ra', p.ra, 'ba', p.ba, 'w', p.w)
    if p.amount then redis.call('HSET', KEYS[index], 'am', p.amount, 'q', 'reserved') end
  end
end
for index, r in pairs(rates) do
  redis.call('ZREMRANGEBYSCORE', KEYS[index], '-inf', int(r.cut))
  if #r.z > 0 then redis.call('ZADD', KEYS[index], unpack(r.z)) end
  redis.call('EXPIRE', KEYS[index], int(r.window / 1000000 + BACKLOG_S))
end
for index, b in pairs(budgets) do
  if b.add > 0 then
    redis.call('HINCRBY', KEYS[index], 'r', int(b.add))
    if b.new then redis.call('EXPIREAT', KEYS[index], int(math.max(tonumber(b.ends), now) + keep)) end
  end
end
if number > first then redis.call('SET', KEYS[1], int(number)) end
return reply
