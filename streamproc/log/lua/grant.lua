#!lua
-- Grant: of payouts that nothing is known of, and against which nothing stands, admit those that find a slot and room,
-- acknowledge their entries and append their outputs, all in one step. It does nothing at all for the others.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] hash policy   KEYS[4] zset runs, as own.lua has them
-- KEYS[5..] hash payouts, in the order of ARGV; then zset rates, hash budgets, hash beneficiaries; ARGV names them by index
-- ARGV[1] group   ARGV[2] policy revision that they were looked at under   ARGV[3] as ARGV[1] of admit.lua
-- ARGV[4], ARGV[5] `m` of each output in two pieces, between which goes the entry's id   ARGV[6] number of payouts
-- ARGV[7] number of terms, then each of them, as counters.lua has them;
--   then for each of the terms the text that tells of its room, in 2 + 2 * windows pieces: between them go the number,
--   and what was reserved and committed in each window; then for each payout:
--   entry id, payout id, amount (paise), received at (µs), its terms' number, its first record in two pieces, between which
--   goes the room, `e` in three, between which go the slot (nothing where no rate is asked for) and the room;
--   then notes: which of the payouts, the index of a beneficiary's hash, the name to note there, and when (µs)
-- Returns for each payout: 1 done, 2 nothing was done: something is known of it, its entry was acknowledged earlier,
--   there is no slot or no room, or the policy has moved on. Then admit.lua and commit.lua have the answer.
-- NOLOG where there is no log.
-- Why Lua: what is reserved is reserved in the step that records it, and a payout crosses the wire once.
-- O(payouts * windows + log n of each rate set). Safe to resend: a second run finds the payouts known.
-- Each command costs some 3 µs before it does anything, so what can be asked or told of all payouts is, in one; and
-- string.format looks at each byte of its format, so long texts come in pieces that are put together.
if call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
whole(ARGV[3], 0, S_MAX)
local payouts, reply = whole(ARGV[6], 1, #KEYS - 4), {}
if (call('HGET', KEYS[3], 'rev') or '0') ~= ARGV[2] then
  for n = 1, payouts do reply[n] = 2 end
  return reply
end
local now, number = tonumber(call('TIME')[1]), tonumber(call('GET', KEYS[2]) or '0')

-- Everything that is asked for is read before the first write, so a key of a wrong type fails the call whole.
local all, i = {}, 8
for n = 1, tonumber(ARGV[7]) do
  all[n], i = terms_at(i)
  if all[n].rate > 0 then rate_of(all[n].rate, all[n].window_us, 0) end
  exceeded_by(all[n], 0)
end
for n = 1, #all do
  local t = all[n]
  t.limited = format(' %d %d 0', t.count, t.window_us)
  t.room = {}
  for k = 1, 2 + 2 * t.windows do
    t.room[2 * k - 1], i = ARGV[i], i + 1
  end
end
local known, runs = {}, call('ZCARD', KEYS[4])
if call('EXISTS', unpack(KEYS, 5, 4 + payouts)) > 0 then
  for n = 1, payouts do known[n] = call('EXISTS', KEYS[4 + n]) == 1 end
end

-- Whose entries are pending, so that XACK will answer 1. A worker's entries are neighbours in the log; where others lie
-- between them, more than there is room for here, the last ones are not found and left.
local pending, notes = {}, i + 10 * payouts
if notes > #ARGV + 1 or (#ARGV + 1 - notes) % 4 ~= 0 then wrong('it has a part of a payout') end
for _, one in ipairs(call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[notes - 10], 2 * payouts)) do pending[one[1]] = true end

local acknowledged, writes, written = {}, {}, 0
local function grant(n, at)
  local t = all[tonumber(ARGV[at + 4])]
  local amount, received = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if known[n] or not pending[ARGV[at]] then return 2 end
  local exceeded, before = exceeded_by(t, amount)
  if exceeded >= 0 then return 2 end
  local used, r = 0, nil
  if t.rate > 0 then
    used, r = slots_used(t, received)
    if used >= t.count then return 2 end
  end
  number = number + 1
  local mine, rate, slot, room = int(number), '', '', t.room
  if r then
    take_slot(r, ARGV[at + 1], received, ARGV[at + 3])
    used = int(used)
    rate, slot = mine .. ' ' .. used .. t.limited, '"number":' .. mine .. ',"used":' .. used
  end
  charge(t, amount)
  room[2] = mine
  for k = 1, #before do room[2 + 2 * k] = before[k] end
  local text = concat(room)
  acknowledged[#acknowledged + 1] = ARGV[at]
  writes[written + 1] = KEYS[4 + n]
  writes[written + 2] = ARGV[at + 5] .. text .. ARGV[at + 6]
  writes[written + 3] = rate .. '|' .. mine .. ' ' .. ARGV[at + 2] .. ' -1' .. told(before) .. '|' .. t.w
  writes[written + 4] = ARGV[at + 7] .. slot .. ARGV[at + 8] .. text .. ARGV[at + 9]
  writes[written + 5] = ARGV[4] .. ARGV[at] .. ARGV[5]
  written = written + 5
  return 1
end

for n = 1, payouts do
  reply[n] = grant(n, i)
  i = i + 10
end
if #acknowledged == 0 then return reply end
for k = notes, #ARGV, 4 do look(KEYS[whole(ARGV[k + 1], 5, #KEYS)], ARGV[k + 2], ARGV[k + 3]) end
call('XACK', KEYS[1], ARGV[1], unpack(acknowledged))
local first, last
for k = 1, written, 5 do
  call('HSET', writes[k], 'v', '1', 's', writes[k + 1], 'a', writes[k + 2])
  last = call('XADD', KEYS[1], '*', 'e', writes[k + 3], 'm', writes[k + 4])
  first = first or last
end
write_counters(tonumber(ARGV[3]), now)
call('SET', KEYS[2], int(number))
for k = notes, #ARGV, 4 do
  if reply[tonumber(ARGV[k])] == 1 then note(KEYS[tonumber(ARGV[k + 1])], ARGV[k + 2], ARGV[k + 3]) end
end
wrote_own(KEYS[1], ARGV[1], KEYS[4], runs, first, last)
return reply
