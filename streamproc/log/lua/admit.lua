#!lua
-- Admit payouts: take rate slots and reserve budget, each part once per payout, for good.
-- KEYS[1]    string  the partition's dense counter of admissions and settlements
-- KEYS[2]    stream  the log, which is only asked for
-- KEYS[3..]  hash payouts, zset rates, hash budgets; ARGV names them by index
-- ARGV[1]    s       how long a budget is kept after its window ended (or after now, if that is later)
-- ARGV[2]    number of terms: what payouts of one agent have in common; then for each:
--   index of the rate zset or 0, count, window (µs), 1 to go on when limited,
--   number of budget windows or -1, windows as JSON (kept as evidence), then for each window:
--     index of its hash, limit (paise) or -1, end (Unix s)
-- then for each payout: index of its hash, payout id, amount (paise), received at (µs), its terms' number
-- Returns for each payout its admission 'RATE|BUDGET|WINDOWS', as field `a` of its hash keeps it:
--   RATE 'number used count window limited' or '', BUDGET 'number amount exceeded reserved committed ...' or '',
--   WINDOWS the windows JSON; not repeated to whom it was recorded for just now.
-- One field for all of it: every field is two more arguments to write, to log and to allocate.
-- NOLOG where there is no log: budgets may be half rebuilt then, and what a worker that was left over takes would be lost.
-- Why Lua: read, compare and add are one step; everything is read and checked before the first write.
-- O(payouts * windows + log n of each rate set). Safe to resend: a recorded answer is given again.
local call, tonumber, format = redis.call, tonumber, string.format
if call('EXISTS', KEYS[2]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[2] .. ' is gone')
end
-- Numbers are doubles, whole and below 2^53, so %d gives every digit; %.0f took three times as long.
local function int(x) return format('%d', x) end

local BACKLOG_S = 86400 -- windows go by the time received; a backlog of a day still finds its slots
local keep = tonumber(ARGV[1])
local now = tonumber(call('TIME')[1])
local number = tonumber(call('GET', KEYS[1]) or '0')
local first = number
local payouts, rates, budgets, dirty, reply = {}, {}, {}, {}, {}

local function terms_at(i)
  local t = {
    rate = tonumber(ARGV[i]), count = tonumber(ARGV[i + 1]), window_us = tonumber(ARGV[i + 2]), hold = ARGV[i + 3] == '1',
    windows = tonumber(ARGV[i + 4]), w = ARGV[i + 5], budgets = {}, limits = {}, ends = {},
  }
  for k = 1, t.windows do
    local j = i + 3 + 3 * k
    t.budgets[k], t.limits[k], t.ends[k] = tonumber(ARGV[j]), tonumber(ARGV[j + 1]), tonumber(ARGV[j + 2])
  end
  return t, i + 6 + 3 * #t.budgets
end

local function payout_of(index)
  local known = payouts[index]
  if not known then
    known = { key = KEYS[index], ra = '', ba = '', w = '', old_w = '' }
    local a = call('HGET', known.key, 'a')
    if a then
      known.ra, known.ba, known.w = string.match(a, '^([^|]*)|([^|]*)|(.*)$')
      known.old_w = known.w
    end
    payouts[index] = known
  end
  return known
end

-- One agent's slots: those stored, and those added by this batch (times never fall).
local function rate_of(index, window, at)
  local r = rates[index]
  if not r then
    local newest = call('ZREVRANGE', KEYS[index], 0, 0, 'WITHSCORES')
    r = { newest = tonumber(newest[2] or '0'), now = 0, window = window, cut = 0, stored = 0, oldest = -1, added = {}, from = 1, z = {} }
    rates[index] = r
  end
  -- A late one counts as of the newest slot, so that no window ever holds more than it may.
  r.now = at > r.newest and at or r.newest
  if r.now - window > r.cut then r.cut = r.now - window end
  if r.oldest == -1 or r.oldest <= r.cut then
    local cut = '(' .. int(r.cut)
    r.stored = call('ZCOUNT', KEYS[index], cut, '+inf')
    local oldest = call('ZRANGEBYSCORE', KEYS[index], cut, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    r.oldest = tonumber(oldest[2] or '9007199254740992')
  end
  while r.from <= #r.added and r.added[r.from] <= r.cut do r.from = r.from + 1 end
  return r
end

local function budget_of(index)
  local b = budgets[index]
  if not b then
    local f = call('HMGET', KEYS[index], 'r', 'c')
    b = { r = tonumber(f[1] or '0'), c = tonumber(f[2] or '0'), committed = ' ' .. (f[2] or '0'), new = not f[1], add = 0 }
    budgets[index] = b
  end
  return b
end

-- The index of the first window without room (from 0) or -1, and what was in each window before, as text.
local function exceeded_by(t, amount)
  local exceeded, before = -1, ''
  for w = 1, t.windows do
    local b, limit = budget_of(t.budgets[w]), t.limits[w]
    local reserved = b.r + b.add
    before = before .. ' ' .. int(reserved) .. b.committed
    if exceeded < 0 and limit >= 0 and reserved + b.c + amount > limit then exceeded = w - 1 end
  end
  return exceeded, before
end

local all, i = {}, 3
for n = 1, tonumber(ARGV[2]) do all[n], i = terms_at(i) end

for j = i, #ARGV, 5 do
  local p, t = payout_of(tonumber(ARGV[j])), all[tonumber(ARGV[j + 4])]
  local amount = tonumber(ARGV[j + 2])
  local ask_rate = t.rate > 0 and p.ra == ''
  local ask_budget = t.windows >= 0 and p.ba == ''
  local limited, mine = false, 0
  if ask_rate then
    local at = tonumber(ARGV[j + 3])
    local r = rate_of(t.rate, t.window_us, at)
    local used = r.stored + #r.added - r.from + 1
    limited = used >= t.count
    if not limited then
      r.newest = r.now
      r.added[#r.added + 1] = r.now
      local k = #r.z
      r.z[k + 1], r.z[k + 2] = r.now == at and ARGV[j + 3] or int(r.now), ARGV[j + 1]
    end
    number = number + 1
    mine = number
    p.ra = format('%d %d %d %d %d', mine, used, t.count, t.window_us, limited and 1 or 0)
  elseif p.ra ~= '' then
    limited = string.sub(p.ra, -1) == '1'
  end
  if ask_budget and t.rate > 0 and limited and not t.hold then ask_budget = false end
  if ask_budget then
    local exceeded, before = exceeded_by(t, amount)
    if exceeded < 0 then
      for w = 1, t.windows do
        local b = budgets[t.budgets[w]]
        b.add, b.ends = b.add + amount, t.ends[w]
      end
    end
    if mine == 0 then
      number = number + 1
      mine = number
    end
    p.ba = format('%d %s %d%s', mine, ARGV[j + 2], exceeded, before)
    p.w = t.w
  end
  if (ask_rate or ask_budget) and not p.dirty then
    p.dirty = true
    dirty[#dirty + 1] = p
  end
  reply[#reply + 1] = p.ra .. '|' .. p.ba .. '|' .. p.old_w
end

for _, p in ipairs(dirty) do
  call('HSET', p.key, 'a', p.ra .. '|' .. p.ba .. '|' .. p.w)
end
for index, r in pairs(rates) do
  call('ZREMRANGEBYSCORE', KEYS[index], '-inf', int(r.cut))
  if #r.z > 0 then call('ZADD', KEYS[index], unpack(r.z)) end
  call('EXPIRE', KEYS[index], int(r.window / 1000000 + BACKLOG_S))
end
for index, b in pairs(budgets) do
  if b.add > 0 then
    call('HINCRBY', KEYS[index], 'r', int(b.add))
    if b.new then call('EXPIREAT', KEYS[index], int(math.max(b.ends, now) + keep)) end
  end
end
if number > first then call('SET', KEYS[1], int(number)) end
return reply
