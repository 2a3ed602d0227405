#!lua
-- Grant: decide, record and acknowledge new payouts whose decision needs the counters at most, all in one step (ADR 25).
-- Each payout brings a template (log/templates.py): ready-made texts for what the counters may answer. It is approved or held where
-- there is a rate slot and budget room, and rejected where not; or rejected outright, without asking a counter. Where its template
-- has no text for the answer, nothing at all is done about it, and the chain decides it.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] hash policy   KEYS[4] zset runs (own.lua)
-- KEYS[5..] hash of each payout, in order; then zset rates, hash budgets, hash beneficiaries, zset timers, which ARGV[6] names by index
-- ARGV[1] group   ARGV[2] policy revision that the payouts were decided under   ARGV[3] as ARGV[1] of admit.lua
-- ARGV[4], ARGV[5] `m` of each output, before and after the id of the entry that caused it
-- ARGV[6] MessagePack, an array of ten:
--   1 number of payouts; 2 and 3 the ids of their first and last entry;
--   4 terms, flat, of each: as counters.lua has them; how many texts its payouts share, and these texts; where it has windows,
--     the text of a reservation in 3 + 2 * windows pieces, between which go the amount, the number, and what was reserved and
--     committed in each window before; then for each window the text of its rejection, as far as the amount used;
--   5 templates, of each: length of its rows, 1 if the payout is over when it is granted, time of the decision (µs), texts if it is
--     granted, texts if there is no slot, texts if there is no room; false for an answer that is left to the chain. Texts are
--     MessagePack: the record and `e`, of each its pieces, its blanks, and which pieces come in parts with the time between them.
--     There are 0, 4 or 13 blanks, one between each two pieces. A blank is the place of what goes there: 3 to 14 the row's
--     nth value, 15 nothing, 16 the number, 17 the slots used before, 18 the text of the reservation, 19 the text of the
--     window without room, 20, 21, ... the texts that payouts of these terms share;
--   6 rows, flat, of each payout: its template's number, then texts: entry, payout, amount (paise), received at (µs), the values of
--     its blanks; then the number of its pair, 0 where Redis was asked about it, and of its terms;
--   7 notes, flat, of each: its payout's number, index of a beneficiaries' hash, the name to note in it, when (µs), and 1 if the
--     decision holds only while that hash names nobody else;
--   8 when the payouts were decided (µs), if by a clock that Redis was not asked for, or 0;
--   9 pairs, flat, of each: hash and vendor, hash and fund account: a remembered pair counts only if both are noted still;
--   10 timers, empty or: index of their zset, then flat, of each: its payout's number, score (µs), member.
-- Returns for each payout: 1 done; 2 rejected, no slot; 3 rejected, no room; 0 left, where nothing was done: it is known already, its
--   entry is acknowledged, its pair is not noted, somebody else was noted first, its template has no text for the answer, the policies
--   have changed, or the time of ARGV[6][8] is not near. What is left, the chain decides by admit.lua and commit.lua.
-- NOLOG where there is no log.
-- Why Lua: what is reserved is reserved in the step that records it, and a payout crosses the wire once.
-- O(payouts * windows + log n of each rate set). Safe to resend: a second run finds the payouts known.
-- Each command and argument has a fixed cost, so what can be asked or told of all payouts together is. string.format scans its
-- whole format, so long texts come in pieces that are concatenated.
local lost = no_log(KEYS[1])
if lost then return lost end
whole(ARGV[3], 0, S_MAX)
local LEFT, DONE, NO_SLOT, NO_ROOM = 0, 1, 2, 3 -- templates.py: Fate
local PAYOUT, NUMBER, USED, ROOM, LACK, COMMON = 3, 16, 17, 18, 19, 20 -- places, as templates.py has them
local AGE_US_MAX = 10000000 -- longest age of such a decision; an older one is of a host that slept, or whose clock was set
local request, reply = cmsgpack.unpack(ARGV[6]), {}
if type(request) ~= 'table' or #request ~= 10 then wrong('it has no payouts') end
for k = 4, 10 do
  if k ~= 8 and type(request[k]) ~= 'table' then wrong('a part of it is no list') end
end
local payouts, terms, templates, rows, notes = whole(request[1], 1, #KEYS - 4), request[4], request[5], request[6], request[7]
local decided_at, now, number = whole(request[8], 0, US_MAX), now_us(), whole(call('GET', KEYS[2]) or 0, 0, US_MAX)
local first_number = number
local is_near = decided_at == 0 or (decided_at <= now and decided_at >= now - AGE_US_MAX)
if not is_near or (call('HGET', KEYS[3], 'rev') or '0') ~= ARGV[2] then
  for n = 1, payouts do reply[n] = LEFT end
  return reply
end

-- Everything is read before the first write, so that a key of a wrong type fails the whole call.
local term_list, i = {}, 1
while i <= #terms do
  local t
  t, i = terms_at(terms, i)
  if t.rate > 0 then rate_of(t) end
  exceeded_by(t, 0)
  t.rate_terms = format(' %d %d ', t.count, t.window_us)
  local shared = whole(terms[i], 0, #terms)
  -- By place. What is not set is false, which cannot be joined: a text that names it fails the call before anything is written.
  local values = {
    false, false, false, false, false, false, false, false, false, false, false, false, false, false, '', -- the row's; nothing
    false, false, false, false, false, false, false, false,
  }
  for k = 1, shared do values[COMMON - 1 + k] = terms[i + k] end
  i = i + 1 + shared
  -- Where the texts of a reservation begin, and after which those of a rejection by each window do.
  t.values, t.room, t.lack = values, i, i + 2 + 2 * t.windows
  if t.windows >= 0 then i = t.lack + t.windows + 1 end
  term_list[#term_list + 1] = t
end
local noted_pairs, pairs_of = { [0] = true }, request[9]
if #pairs_of % 4 ~= 0 then wrong('it has a part of a pair') end
for k = 1, #pairs_of, 4 do
  local by_account, by_vendor = KEYS[whole(pairs_of[k], 5, #KEYS)], KEYS[whole(pairs_of[k + 2], 5, #KEYS)]
  noted_pairs[(k + 3) / 4] = is_noted(by_account, pairs_of[k + 1], now) and is_noted(by_vendor, pairs_of[k + 3], now)
end
local notes_of, claimed = {}, {} -- payout's number -> places of its notes; key -> the name that this call will note in it
if #notes % 5 ~= 0 then wrong('it has a part of a note') end
for k = 1, #notes, 5 do
  look(KEYS[whole(notes[k + 1], 5, #KEYS)], notes[k + 2], notes[k + 3])
  whole(notes[k + 4], 0, 1)
  local n = whole(notes[k], 1, payouts)
  notes_of[n] = notes_of[n] or {}
  table.insert(notes_of[n], k)
end
local timers = request[10]
if #timers % 3 ~= 1 and #timers > 0 then wrong('it has a part of a timer') end
local timers_key = #timers > 0 and KEYS[whole(timers[1], 5, #KEYS)]
if timers_key then call('ZCARD', timers_key) end
for k = 2, #timers, 3 do
  whole(timers[k], 1, payouts)
  whole(timers[k + 1], 0, US_MAX)
  if type(timers[k + 2]) ~= 'string' then wrong('it has a timer without its event') end
end
local known, runs = {}, call('ZCARD', KEYS[4])
if call('EXISTS', unpack(KEYS, 5, 4 + payouts)) > 0 then
  for n = 1, payouts do known[n] = call('EXISTS', KEYS[4 + n]) == 1 end
end

-- Entries that are pending, so that XACK will answer 1. A worker's entries are neighbours in the log. Where so many of other
-- workers lie between them that COUNT ends first, the last ones are not found here, and are left to the chain.
local pending = call('XPENDING', KEYS[1], ARGV[1], request[2], request[3], 2 * payouts)
local passed = 0 -- rows of it that were looked through
-- Whether an entry is pending. Both are in the order of the log, so it is nearly always the next one; what is not is left.
local function is_pending(entry)
  for k = passed + 1, #pending do
    if pending[k][1] == entry then
      passed = k
      return true
    end
  end
  return false
end

-- A text with its blanks filled. `..` joins all its operands at once, for half of what table.concat takes for each.
local function filled(text, v)
  local p, b = text[1], text[2]
  if #b == 0 then return p[1] end
  if #b == 4 then return p[1] .. v[b[1]] .. p[2] .. v[b[2]] .. p[3] .. v[b[3]] .. p[4] .. v[b[4]] .. p[5] end
  return p[1] .. v[b[1]] .. p[2] .. v[b[2]] .. p[3] .. v[b[3]] .. p[4] .. v[b[4]] .. p[5] .. v[b[5]] .. p[6] .. v[b[6]] .. p[7]
    .. v[b[7]] .. p[8] .. v[b[8]] .. p[9] .. v[b[9]] .. p[10] .. v[b[10]] .. p[11] .. v[b[11]] .. p[12] .. v[b[12]] .. p[13]
    .. v[b[13]] .. p[14]
end

-- A template's texts for a fate, or false. Only those that are used are unpacked: most batches meet one of three.
local function texts_for(template, fate)
  local texts = template[3 + fate]
  if type(texts) ~= 'string' then return texts end
  texts = cmsgpack.unpack(texts)
  for _, text in ipairs(texts) do
    local pieces = text[1]
    for _, k in ipairs(text[3]) do pieces[k] = concat(pieces[k], template[3]) end
  end
  template[3 + fate] = texts
  return texts
end

-- Whether somebody else was noted where an approval counts on being first, before this call or in it: then rule 13 may hold it.
-- If not, its own names are claimed, for those that follow.
local function came_second(places)
  for _, k in ipairs(places) do
    local key, name = KEYS[notes[k + 1]], notes[k + 2]
    local other = claimed[key] and claimed[key] ~= name
    if notes[k + 4] == 1 and (other or is_taken(key, name)) then return true end
  end
  for _, k in ipairs(places) do claimed[KEYS[notes[k + 1]]] = notes[k + 2] end
  return false
end

local acknowledged, writes, ended = {}, {}, {} -- ids; key, record, admission and `e` of each; whether its payout is over
local function grant(n, template, at)
  local t, entry, paise = term_list[whole(rows[at + template[1]], 1, #term_list)], rows[at + 2], rows[at + 4]
  local amount, received = whole(paise, 0, US_MAX), whole(rows[at + 5], 0, US_MAX)
  if known[n] or not noted_pairs[rows[at + template[1] - 1]] or not is_pending(entry) then return LEFT end
  local fate, used, start, time, exceeded = DONE, 0, nil, nil, -1
  if t.rate > 0 then
    used, start, time = slots_used(t, received)
    if used >= t.count then fate = NO_SLOT end
  end
  if fate == DONE then
    exceeded = exceeded_by(t, amount)
    if exceeded >= 0 then fate = NO_ROOM end
  end
  local texts = texts_for(template, fate)
  if not texts or (fate == DONE and notes_of[n] and came_second(notes_of[n])) then return LEFT end
  local admission, values = false, t.values
  for k = PAYOUT, template[1] - 2 do values[k] = rows[at + k] end
  if t.rate > 0 or t.windows >= 0 then
    number = number + 1
    local my_number, my_used, rate = int(number), int(used), ''
    values[NUMBER], values[USED] = my_number, my_used
    if t.rate > 0 then rate = my_number .. ' ' .. my_used .. t.rate_terms .. (fate == NO_SLOT and '1' or '0') end
    if fate == NO_SLOT then
      count_window(t, start)
      admission = rate .. '||'
    else
      if t.rate > 0 then take_slot(t, start, time, rows[at + 3]) end
      admission = rate .. '|' .. my_number .. ' ' .. paise .. (fate == DONE and ' -1' or ' ' .. exceeded) .. told(t) .. '|' .. t.w
      if fate == DONE then
        charge(t, amount)
        local k = t.room + 2
        local room = terms[k - 2] .. paise .. terms[k - 1] .. my_number .. terms[k]
        for w = 2, 2 * t.windows, 2 do room = room .. before[w - 1] .. terms[k + w - 1] .. before[w] .. terms[k + w] end
        values[ROOM] = room
      else
        local k, b = exceeded + 1, budget_of(terms[t.at + 3 * exceeded])
        local reserved, committed = before[2 * k - 1], before[2 * k]
        values[LACK] = terms[t.lack + k] .. int(b.r + b.add + b.c) .. ',"reserved":' .. reserved .. ',"committed":' .. committed
      end
    end
  end
  local done = #acknowledged + 1
  local k = 4 * done
  acknowledged[done], ended[done] = entry, template[2] == 1
  writes[k - 3], writes[k - 2] = KEYS[4 + n], filled(texts[1], values)
  writes[k - 1], writes[k] = admission, filled(texts[2], values)
  return fate
end

local at = 0
for n = 1, payouts do
  local template = templates[whole(rows[at + 1], 1, #templates)]
  reply[n] = grant(n, template, at)
  at = at + template[1]
end
if at ~= #rows then wrong('it has a part of a payout') end
if #acknowledged == 0 then return reply end
call('XACK', KEYS[1], ARGV[1], unpack(acknowledged))
local first, last
for n, entry in ipairs(acknowledged) do
  local k = 4 * n
  local key, record, admission = writes[k - 3], writes[k - 2], writes[k - 1]
  if admission then
    call('HSET', key, 'v', '1', 's', record, 'a', admission)
  else
    call('HSET', key, 'v', '1', 's', record)
  end
  if ended[n] then call('EXPIRE', key, ARGV[3]) end
  last = call('XADD', KEYS[1], '*', 'e', writes[k], 'm', ARGV[4] .. entry .. ARGV[5])
  first = first or last
end
write_counters(tonumber(ARGV[3]), math.floor(now / 1000000))
if number > first_number then call('SET', KEYS[2], int(number)) end
for k = 1, #notes, 5 do
  if reply[notes[k]] == DONE then note(KEYS[notes[k + 1]], notes[k + 2], notes[k + 3]) end
end
for k = 2, #timers, 3 do
  if reply[timers[k]] == DONE then call('ZADD', timers_key, timers[k + 1], timers[k + 2]) end
end
wrote_own(KEYS[1], ARGV[1], KEYS[4], runs, first, last)
return reply
