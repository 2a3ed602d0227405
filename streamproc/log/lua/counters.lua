#!lua
-- Counting of rate slots and budgets, shared by admit.lua and grant.lua: this file is put before each of the two.
-- KEYS[1], ... as the script has them: zset rates and hash budgets are named by index
-- ARGV         MessagePack, with terms, that is, what is asked for alike by payouts of one agent:
--   index of the rate zset or 0, count, window (µs), 1 to go on when limited,
--   number of budget windows or -1, windows as JSON (kept as evidence), then for each window:
--     index of its hash, limit (paise) or -1, end (Unix s)
-- Returns nothing by itself. What a batch takes is counted in memory and written only by `write_counters`, after
-- everything was read and checked: Redis does not roll back.
local call, tonumber, concat = redis.call, tonumber, table.concat

local BACKLOG_S = 86400 -- windows go by the time received; a backlog of a day still finds its slots
local WINDOW_MAX = 2 ^ 53 - 1 -- paise in a window that nobody limits; as `domain.money` has it
local NEVER = 2 ^ 53 -- a time that no slot has: µs
local rates, budgets = {}, {} -- index of the key -> what was read of it and what this call adds

-- The terms at `args[i]`, checked, and the index after them. Their windows stay where they are, in threes from `at` on.
local function terms_at(args, i)
  local windows = whole(args[i + 4], -1, (#args - i - 5) / 3)
  whole(args[i + 2], 0, US_MAX)
  if type(args[i + 5]) ~= 'string' then wrong('it has terms without windows') end
  -- A count or a limit that is no number would limit nothing.
  local t = {
    rate = whole(args[i], 0, #KEYS), count = whole(args[i + 1], 0, US_MAX), window_us = tonumber(args[i + 2]),
    hold = whole(args[i + 3], 0, 1) == 1, windows = windows, w = args[i + 5], args = args, at = i + 6,
  }
  i = i + 6
  for _ = 1, windows do
    whole(args[i], 1, #KEYS)
    whole(args[i + 1], -1, WINDOW_MAX)
    whole(args[i + 2], 0, S_MAX)
    i = i + 3
  end
  return t, i
end

-- One agent's slots: those in Redis and those that this batch adds, whose times never fall. A window is open at its start.
--   newest: time of the newest slot   last: of the newest one in Redis
--   cut: start of the window of the last payout that was counted; slots up to it can go
--   n: number of new slots   z: arguments of their ZADD, time and payout of each   counted: there is something to write
-- What `slots_used` need not look up again for the next payout, whose window is mostly nearly the same:
--   seen: window start for which `stored` slots were counted in Redis, the first of them at `oldest` (-1: not counted yet)
--   from: the first of the new slots in the window
local function rate_of(t)
  local r = rates[t.rate]
  if not r then
    local newest = call('ZREVRANGE', KEYS[t.rate], 0, 0, 'WITHSCORES')
    local last = tonumber(newest[2] or '0')
    r = {
      newest = last, last = last, window = t.window_us, cut = 0, n = 0, z = {}, seen = 0, stored = 0, oldest = -1, from = 1,
    }
    rates[t.rate] = r
  end
  return r
end

local function budget_of(index)
  local b = budgets[index]
  if not b then
    local f = call('HMGET', KEYS[index], 'r', 'c')
    b = { r = tonumber(f[1] or '0'), c = tonumber(f[2] or '0'), committed = f[2] or '0', new = not f[1], add = 0 }
    budgets[index] = b
  end
  return b
end

local before = {} -- what `exceeded_by` found last: one table for all payouts, since a new one costs more than what is in it

-- The index of the first window without room (from 0) or -1. What was reserved and committed in each is in `before` then, as
-- texts, until the next call.
local function exceeded_by(t, amount)
  local args, at, exceeded = t.args, t.at, -1
  for w = 1, t.windows do
    local b, limit = budget_of(args[at]), args[at + 1]
    local reserved = b.r + b.add
    before[2 * w - 1], before[2 * w] = int(reserved), b.committed
    if exceeded < 0 and reserved + b.c + amount > (limit >= 0 and limit or WINDOW_MAX) then exceeded = w - 1 end
    at = at + 3
  end
  return exceeded
end

-- What is in `before`, as an admission has it: each text with a space before it.
local function told(t)
  return t.windows <= 0 and '' or ' ' .. concat(before, ' ', 1, 2 * t.windows)
end

-- For a payout received at `at` (µs): how many slots are used in its window, where this starts, and the time of its own slot.
-- Counts nothing: a payout that is then left to the chain must not move the window for others.
local function slots_used(t, at)
  local r = rate_of(t)
  -- A late payout counts at the newest slot's time, so that no window ever holds more than it may.
  local time = at > r.newest and at or r.newest
  local start = time - t.window_us > r.cut and time - t.window_us or r.cut
  if r.oldest <= start or start < r.seen then
    r.seen, r.stored, r.oldest = start, 0, NEVER
    if r.last > start then -- else none of those in Redis is in the window
      local cut = '(' .. int(start)
      r.stored = call('ZCOUNT', KEYS[t.rate], cut, '+inf')
      local oldest = call('ZRANGEBYSCORE', KEYS[t.rate], cut, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
      r.oldest = tonumber(oldest[2] or NEVER)
    end
  end
  local z, n, from = r.z, r.n, r.from
  while from > 1 and z[2 * from - 3] > start do from = from - 1 end
  while from <= n and z[2 * from - 1] <= start do from = from + 1 end
  r.from = from
  return r.stored + n - from + 1, start, time
end

-- Count a payout whose window starts there: slots up to it are not needed any more.
local function count_window(t, start)
  local r = rates[t.rate]
  r.cut, r.counted = start, true
end

-- Count it, and take a slot for it.
local function take_slot(t, start, time, payout)
  if type(payout) ~= 'string' then wrong('it has a payout without an id') end
  local r = rates[t.rate]
  local n = r.n + 1
  r.cut, r.counted, r.newest, r.n = start, true, time, n
  r.z[2 * n - 1], r.z[2 * n] = time, payout -- a score; Redis makes a text of a whole number itself, for less than `int`
end

-- Charge an amount for which `exceeded_by` found room.
local function charge(t, amount)
  local args, at = t.args, t.at
  for _ = 1, t.windows do
    local b = budgets[args[at]]
    b.add, b.ends = b.add + amount, args[at + 2]
    at = at + 3
  end
end

-- `keep`: s that a budget is kept after its window ended, or after `now` (Unix s), if that is later.
local function write_counters(keep, now)
  for index, r in pairs(rates) do
    if r.counted then
      call('ZREMRANGEBYSCORE', KEYS[index], '-inf', int(r.cut))
      if r.n > 0 then call('ZADD', KEYS[index], unpack(r.z)) end
      call('EXPIRE', KEYS[index], int(r.window / 1000000 + BACKLOG_S))
    end
  end
  for index, b in pairs(budgets) do
    if b.add > 0 then
      call('HINCRBY', KEYS[index], 'r', int(b.add))
      if b.new then call('EXPIREAT', KEYS[index], int(math.max(b.ends, now) + keep)) end
    end
  end
end
