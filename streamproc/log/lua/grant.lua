#!lua
-- Grant: of payouts that nothing is known of, and that nothing else rejects, admit those that find a slot and room and reject
-- the others; reject those that ask for neither; acknowledge their entries, append their outputs and set their timers, all in
-- one step. What a payout has no form for it leaves, and does nothing at all about it.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] hash policy   KEYS[4] zset runs, as own.lua has them
-- KEYS[5..] hash payouts, in the order of ARGV; then zset rates, hash budgets, hash beneficiaries, zset timers; ARGV names them by index
-- ARGV[1] group   ARGV[2] policy revision that they were looked at under   ARGV[3] as ARGV[1] of admit.lua
-- ARGV[4], ARGV[5] `m` of each output in two pieces, between which goes the entry's id
-- ARGV[6] MessagePack, an array of: number of payouts, first and last entry, four arrays, a time, two arrays:
--   terms, one after the other: as counters.lua has them, then how many texts their payouts share, and these; where they have
--     windows, what tells of their room, in 2 + 2 * windows pieces: between them go the number, and what was reserved and
--     committed in each; then of each window what tells that it has no room, as far as what is used in it;
--   forms, each: the length of its rows, texts for what is offered, 1 if its payout is over with that, texts for who finds no slot, and
--     for who finds no room; false where that is left. Texts: of the record and of `e` the pieces, with something to be replaced
--     between each two, and what goes there: n > 0 the nth of the row, -1 the number, -2 the slots used before, -3 what tells of
--     the room, -4 what tells of the window that has none, -5, -6, ... what payouts of the terms share;
--   rows, one after the other: the form's number, then texts: entry, payout, amount (paise), received at (µs), others, and the
--     numbers of its pair, 0 where Redis was asked about it, and of its terms;
--   notes, likewise: which of the payouts, the index of a beneficiary's hash, the name to note there, when (µs), and 1 if nobody
--     else may be there;
--   when they were looked at (µs) where Redis was not asked for the time, or 0;
--   pairs, each: twice the index of a beneficiary's hash and the name that is to be noted there;
--   timers, where there are any: the index of their zset, then of each which of the payouts, score (µs) and member.
-- Returns for each payout: 1 done, 3 rejected since there is no slot, 4 rejected since there is no room, 2 nothing was done:
--   something is known of it, its entry was acknowledged earlier, its pair is not noted, somebody else is noted by now where nobody
--   was, it has no form for what was found, the policy has moved on, or the time is not near. Then admit.lua and commit.lua have the answer.
-- NOLOG where there is no log.
-- Why Lua: what is reserved is reserved in the step that records it, and a payout crosses the wire once.
-- O(payouts * windows + log n of each rate set). Safe to resend: a second run finds the payouts known.
-- Each command and each argument costs before it does anything, so what can be asked or told of all payouts is, in one;
-- and string.format looks at each byte of its format, so long texts come in pieces that are put together.
if call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
whole(ARGV[3], 0, S_MAX)
local DONE, LEFT, NO_SLOT, NO_ROOM = 1, 2, 3, 4 -- forms.py: Fate
local UNASKED_US = 10000000 -- so old may what is decided be; more is a host that slept, or a clock that was set
local given, reply = cmsgpack.unpack(ARGV[6]), {}
if type(given) ~= 'table' or #given ~= 10 then wrong('it has no payouts') end
local payouts, terms, forms, rows, notes = whole(given[1], 1, #KEYS - 4), given[4], given[5], given[6], given[7]
local looked_at, time = whole(given[8], 0, US_MAX), call('TIME')
local now, number = tonumber(time[1]), whole(call('GET', KEYS[2]) or 0, 0, US_MAX)
local first_number = number
local now_us = now * 1000000 + tonumber(time[2])
local is_near = looked_at == 0 or (looked_at <= now_us and looked_at >= now_us - UNASKED_US)
if not is_near or (call('HGET', KEYS[3], 'rev') or '0') ~= ARGV[2] then
  for n = 1, payouts do reply[n] = LEFT end
  return reply
end

-- Everything that is asked for is read before the first write, so a key of a wrong type fails the call whole.
local all, i = {}, 1
while i <= #terms do
  local t
  t, i = terms_at(terms, i)
  if t.rate > 0 then rate_of(t.rate, t.window_us) end
  exceeded_by(t, 0)
  t.limited, t.shared, t.room, t.lack = format(' %d %d ', t.count, t.window_us), {}, {}, {}
  for k = 1, whole(terms[i], 0, #terms) do t.shared[k] = terms[i + k] end
  i = i + 1 + #t.shared
  for k = 1, 2 + 2 * t.windows do t.room[2 * k - 1], i = terms[i], i + 1 end
  for k = 1, t.windows do t.lack[k], i = terms[i], i + 1 end
  all[#all + 1] = t
end
local noted_pairs, pairs_of = { [0] = true }, given[9]
if #pairs_of % 4 ~= 0 then wrong('it has a part of a pair') end
for k = 1, #pairs_of, 4 do
  local by_account, by_vendor = KEYS[whole(pairs_of[k], 5, #KEYS)], KEYS[whole(pairs_of[k + 2], 5, #KEYS)]
  noted_pairs[(k + 3) / 4] = is_noted(by_account, pairs_of[k + 1], now_us) and is_noted(by_vendor, pairs_of[k + 3], now_us)
end
local notes_of, coming = {}, {} -- by payout, where theirs are; and the name that is going to be under a key
if #notes % 5 ~= 0 then wrong('it has a part of a note') end
for k = 1, #notes, 5 do
  look(KEYS[whole(notes[k + 1], 5, #KEYS)], notes[k + 2], notes[k + 3])
  local n = whole(notes[k], 1, payouts)
  notes_of[n] = notes_of[n] or {}
  table.insert(notes_of[n], k)
end
local timers = given[10]
if #timers % 3 ~= 1 and #timers > 0 then wrong('it has a part of a timer') end
local later = #timers > 0 and KEYS[whole(timers[1], 5, #KEYS)]
if later then call('ZCARD', later) end
for k = 2, #timers, 3 do
  whole(timers[k], 1, payouts)
  whole(timers[k + 1], 0, US_MAX)
end
local known, runs = {}, call('ZCARD', KEYS[4])
if call('EXISTS', unpack(KEYS, 5, 4 + payouts)) > 0 then
  for n = 1, payouts do known[n] = call('EXISTS', KEYS[4 + n]) == 1 end
end

-- Whose entries are pending, so that XACK will answer 1. A worker's entries are neighbours in the log; where others lie
-- between them, more than there is room for here, the last ones are not found and left.
local pending = {}
for _, one in ipairs(call('XPENDING', KEYS[1], ARGV[1], given[2], given[3], 2 * payouts)) do pending[one[1]] = true end

local own = {} -- what fills the blanks below 0
local function filled(pieces, blanks, at)
  for k = 1, #blanks do
    local from = blanks[k]
    pieces[2 * k] = from > 0 and rows[at + from] or own[-from]
  end
  return concat(pieces)
end

-- Whether an approval is the first to its beneficiary no more; if it is, it is what makes others changed ones.
local function came_second(of)
  for _, k in ipairs(of) do
    local key, name = KEYS[notes[k + 1]], notes[k + 2]
    local other = coming[key] and coming[key] ~= name
    if notes[k + 4] == 1 and (other or is_taken(key, name)) then return true end
  end
  for _, k in ipairs(of) do coming[KEYS[notes[k + 1]]] = notes[k + 2] end
  return false
end

local acknowledged, writes, written = {}, {}, 0
local function grant(n, form, at)
  local t, entry, paise, time = all[rows[at + form[1]]], rows[at + 2], rows[at + 4], rows[at + 5]
  local amount, received = whole(paise, 0, US_MAX), whole(time, 0, US_MAX)
  if known[n] or not pending[entry] or not noted_pairs[rows[at + form[1] - 1]] then return LEFT end
  local fate, used, r, exceeded, before = DONE, 0, nil, -1, nil
  if t.rate > 0 then
    used, r = slots_used(t, received)
    if used >= t.count then fate = NO_SLOT end
  end
  if fate == DONE then
    exceeded, before = exceeded_by(t, amount)
    if exceeded >= 0 then fate = NO_ROOM end
  end
  local texts = form[1 + fate]
  if not texts or (fate == DONE and notes_of[n] and came_second(notes_of[n])) then return LEFT end
  local admission = false
  if t.rate > 0 or t.windows >= 0 then
    number = number + 1
    local mine, rate, room = int(number), '', t.room
    own[1], own[2] = mine, int(used)
    if r then rate = mine .. ' ' .. own[2] .. t.limited .. (fate == NO_SLOT and '1' or '0') end
    if fate == NO_SLOT then
      passed(r)
      admission = rate .. '||'
    else
      if r then take_slot(r, rows[at + 3], received, time) end
      admission = rate .. '|' .. mine .. ' ' .. paise .. ' ' .. exceeded .. told(before) .. '|' .. t.w
      if fate == DONE then
        charge(t, amount)
        room[2] = mine
        for k = 1, #before do room[2 + 2 * k] = before[k] end
        own[3] = concat(room)
      else
        local k, b = exceeded + 1, budget_of(t.budgets[exceeded + 1])
        local reserved, committed = before[2 * k - 1], before[2 * k]
        own[4] = t.lack[k] .. int(b.r + b.add + b.c) .. ',"reserved":' .. reserved .. ',"committed":' .. committed
      end
    end
    for k = 1, #t.shared do own[4 + k] = t.shared[k] end
  end
  acknowledged[#acknowledged + 1] = entry
  writes[written + 1] = KEYS[4 + n]
  writes[written + 2] = filled(texts[1], texts[2], at)
  writes[written + 3] = admission
  writes[written + 4] = filled(texts[3], texts[4], at)
  writes[written + 5] = ARGV[4] .. entry .. ARGV[5]
  writes[written + 6] = form[3] == 1
  written = written + 6
  return fate
end

local at = 0
for n = 1, payouts do
  local form = forms[rows[at + 1]]
  reply[n] = grant(n, form, at)
  at = at + form[1]
end
if at ~= #rows then wrong('it has a part of a payout') end
if #acknowledged == 0 then return reply end
call('XACK', KEYS[1], ARGV[1], unpack(acknowledged))
local first, last
for k = 1, written, 6 do
  if writes[k + 2] then
    call('HSET', writes[k], 'v', '1', 's', writes[k + 1], 'a', writes[k + 2])
  else
    call('HSET', writes[k], 'v', '1', 's', writes[k + 1])
  end
  if writes[k + 5] then call('EXPIRE', writes[k], ARGV[3]) end
  last = call('XADD', KEYS[1], '*', 'e', writes[k + 3], 'm', writes[k + 4])
  first = first or last
end
write_counters(tonumber(ARGV[3]), now)
if number > first_number then call('SET', KEYS[2], int(number)) end
for k = 1, #notes, 5 do
  if reply[notes[k]] == DONE then note(KEYS[notes[k + 1]], notes[k + 2], notes[k + 3]) end
end
for k = 2, #timers, 3 do
  if reply[timers[k]] == DONE then call('ZADD', later, timers[k + 1], timers[k + 2]) end
end
wrote_own(KEYS[1], ARGV[1], KEYS[4], runs, first, last)
return reply
