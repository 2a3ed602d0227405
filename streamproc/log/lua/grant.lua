#!lua
-- Grant: of payouts that nothing is known of, and against which nothing stands, admit those that find a slot and room,
-- acknowledge their entries and append their outputs, all in one step. It does nothing at all for the others.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] hash policy   KEYS[4..] hash payouts, in the order of ARGV;
--   then zset rates, hash budgets, hash beneficiaries; ARGV names them by index
-- ARGV[1] group   ARGV[2] policy revision that they were looked at under   ARGV[3] as ARGV[1] of admit.lua
-- ARGV[4] number of payouts   ARGV[5] number of terms, then each of them, as counters.lua has them; then for each payout:
--   entry id, payout id, amount (paise), received at (µs), its terms' number, its first record, `e` and `m`,
--   number of notes, then of each note the index of a beneficiary's hash, the name to note there, and when (µs).
--   Record and `e` are formats. What only this script knows is put in: into `e` the number and the slots used (where a
--   rate is asked for), the number, and reserved and committed of each window; into the record all but the first two.
-- Returns for each payout: 1 done, 2 nothing was done: something is known of it, its entry was acknowledged earlier,
--   there is no slot or no room, or the policy has moved on. Then admit.lua and commit.lua have the answer.
-- NOLOG where there is no log.
-- Why Lua: what is reserved is reserved in the step that records it, and a payout crosses the wire once.
-- O(payouts * windows + log n of each rate set). Safe to resend: a second run finds the payouts known.
-- Each command costs some 3 µs before it does anything, so what can be asked or told of all payouts is, in one.
if call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
whole(ARGV[3], 0, S_MAX)
local payouts, reply = whole(ARGV[4], 1, #KEYS - 3), {}
if (call('HGET', KEYS[3], 'rev') or '0') ~= ARGV[2] then
  for n = 1, payouts do reply[n] = 2 end
  return reply
end
local now, number = tonumber(call('TIME')[1]), tonumber(call('GET', KEYS[2]) or '0')
local notes = {}

-- Everything that is asked for is read before the first write, so a key of a wrong type fails the call whole.
local all, i = {}, 6
for n = 1, tonumber(ARGV[5]) do
  all[n], i = terms_at(i)
  if all[n].rate > 0 then rate_of(all[n].rate, all[n].window_us, 0) end
  exceeded_by(all[n], 0)
end
local known = {}
if call('EXISTS', unpack(KEYS, 4, 3 + payouts)) > 0 then
  for n = 1, payouts do known[n] = call('EXISTS', KEYS[3 + n]) == 1 end
end

-- Whose entries are pending, so that XACK will answer 1. A worker's entries are neighbours in the log; where others lie
-- between them, more than there is room for here, the last ones are not found and left.
local pending, at, ids = {}, i, {}
for n = 1, payouts do
  ids[n], at = ARGV[at], at + 9 + 3 * tonumber(ARGV[at + 8])
end
if at ~= #ARGV + 1 then wrong('it has a part of a payout') end
for _, one in ipairs(call('XPENDING', KEYS[1], ARGV[1], ids[1], ids[payouts], 2 * payouts)) do pending[one[1]] = true end

-- What admit.lua would have answered, in the order of the formats; nil where it would not have been granted.
local function answer(t, amount, at)
  local exceeded, before = exceeded_by(t, amount)
  if exceeded >= 0 then return nil end
  local used, r = 0, nil
  if t.rate > 0 then
    used, r = slots_used(t, at)
    if used >= t.count then return nil end
  end
  local values = { number + 1, used, number + 1 }
  for w = 1, t.windows do
    local b = budgets[t.budgets[w]]
    values[2 + 2 * w], values[3 + 2 * w] = b.r + b.add, b.c
  end
  return values, before, r
end

local function filled(record, e, values, rate)
  return format(record, unpack(values, 3)), format(e, unpack(values, rate and 1 or 3))
end

local acknowledged, writes = {}, {}
local function grant(n, at)
  local t = all[tonumber(ARGV[at + 4])]
  local amount, received = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if known[n] or not pending[ARGV[at]] then return 2 end
  local values, before, r = answer(t, amount, received)
  if not values then return 2 end
  local fits, record, e = pcall(filled, ARGV[at + 5], ARGV[at + 6], values, r)
  if not fits then return 2 end
  number = number + 1
  local rate = ''
  if r then
    take_slot(r, ARGV[at + 1], received, ARGV[at + 3])
    rate = format('%d %d %d %d 0', number, values[2], t.count, t.window_us)
  end
  charge(t, amount)
  local admission = rate .. format('|%d ', number) .. ARGV[at + 2] .. ' -1' .. before .. '|' .. t.w
  acknowledged[#acknowledged + 1] = ARGV[at]
  writes[#writes + 1] = { KEYS[3 + n], record, admission, e, ARGV[at + 7] }
  for k = at + 9, at + 6 + 3 * tonumber(ARGV[at + 8]), 3 do notes[#notes + 1] = k end
  return 1
end

for n = 1, payouts do
  reply[n] = grant(n, i)
  i = i + 9 + 3 * tonumber(ARGV[i + 8])
end
if #acknowledged == 0 then return reply end
for _, k in ipairs(notes) do look(KEYS[tonumber(ARGV[k])], ARGV[k + 1], ARGV[k + 2]) end
call('XACK', KEYS[1], ARGV[1], unpack(acknowledged))
for _, w in ipairs(writes) do
  call('HSET', w[1], 'v', '1', 's', w[2], 'a', w[3])
  call('XADD', KEYS[1], '*', 'e', w[4], 'm', w[5])
end
write_counters(tonumber(ARGV[3]), now)
call('SET', KEYS[2], int(number))
for _, k in ipairs(notes) do note(KEYS[tonumber(ARGV[k])], ARGV[k + 1], ARGV[k + 2]) end
return reply
