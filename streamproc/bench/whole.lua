#!lua
-- The whole floor's commit: rate windows, day budgets, admissions, records, events, beneficiaries and acknowledgements of a batch.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] zset runs, as own.lua has them
-- KEYS[4..] hash payouts, in the order of the rows; then zset rates, hash budgets, hash beneficiaries, by the indexes in ARGV
-- ARGV[1] group   ARGV[2] 1 to acknowledge, 0 if the caller does   ARGV[3] now (µs)   ARGV[4] account
-- ARGV[5] count and ARGV[6] length (s) of a rate window   ARGV[7] time (s) for which a budget is kept after its window
-- ARGV[8] MessagePack, an array of the number of payouts and three arrays of texts, indexes and numbers:
--   terms, one after the other: agent, policy's version, day, its limit (paise), its end (Unix s), index of the rate, of the budget;
--   rows, one after the other: entry, payout, amount (paise), received at (µs), number of its terms; pieces of JSON: the rest of the
--     record's head, its reputation or the finding that rejects it, until when that is fresh, the beneficiary as rule 13 sees it; the
--     reason of a rejection or '', and the event that notes the beneficiary, JSON after a comma, or '';
--   notes: number of the row, index of a beneficiary's hash, and the name to note there
-- Returns for each payout: 0 approved, 2 over the day's limit, 3 rejected for the reason given.
-- Why Lua: one round trip for a batch. It is not safe to resend, which a floor need not be. A full rate window, which the job
-- never has, is an error that leaves half a batch. O(payouts + log n of each rate set).
local call, tonumber = redis.call, tonumber
local group, now, account = ARGV[1], ARGV[3], ARGV[4]
local most, window_s, kept_s = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local window, limited = window_s * 1000000, ',"limit":' .. ARGV[5] .. ',"window_s":' .. ARGV[6] .. '},{"type":"payout.reputation_checked","v":4'
local given = cmsgpack.unpack(ARGV[8])
local terms, rows, notes = given[2], given[3], given[4]
local number, runs = tonumber(call('GET', KEYS[2]) or '0'), call('ZCARD', KEYS[3])

local rates, all = {}, {}
local function rate_of(index)
  if not rates[index] then
    local newest = call('ZREVRANGE', KEYS[index], 0, 0, 'WITHSCORES')[2]
    rates[index] = { key = KEYS[index], newest = tonumber(newest or '0'), oldest = 0, cut = 0, stored = 0, slots = {}, added = {}, from = 1 }
  end
  return rates[index]
end
for i = 1, #terms, 7 do
  local agent, version, day, limit, ends, budget = terms[i], terms[i + 1], terms[i + 2], terms[i + 3], terms[i + 4], KEYS[terms[i + 6]]
  local spent = call('HMGET', budget, 'r', 'c')
  local scope = '"scope":"agent:' .. agent .. '","window":"' .. day .. '","limit":' .. limit
  all[#all + 1] = {
    rate = rate_of(terms[i + 5]), budget = budget, new = not spent[1], reserved = tonumber(spent[1] or '0'), committed = spent[2] or '0',
    charged = 0, ends = tonumber(ends), limit = tonumber(limit),
    windows = '[["agent:' .. agent .. '","' .. day .. '",' .. limit .. ',' .. ends .. ']]',
    screened = '","agent":"' .. agent .. '","policy_version":' .. version .. ',"beneficiary":',
    room = ',"windows":[{' .. scope .. ',"reserved":',
    over = '{"stage":"budget","code":"LIMIT_EXCEEDED","outcome":"REJECTED","evidence":{' .. scope .. ',"used":',
    decided = ',"account":"' .. account .. '","agent":"' .. agent .. '","amount":',
    known = ',"currency":"INR","agent":"' .. agent .. '","identity":"claimed"',
    status = ',"policy_version":' .. version .. ',"bank_status":"pending","identity":"claimed"}',
    version = ',"policy_version":' .. version,
  }
end

-- Slots in use in the window that ends at `at`, when a payout was received; if it is late, in that of the newest slot.
local function slots_used(r, at)
  if at > r.newest then r.newest = at end
  if r.newest - window > r.cut then r.cut = r.newest - window end
  if r.oldest <= r.cut then
    local after = '(' .. int(r.cut)
    r.stored = call('ZCOUNT', r.key, after, '+inf')
    r.oldest = tonumber(call('ZRANGEBYSCORE', r.key, after, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or '9007199254740992')
  end
  while r.from <= #r.added and r.added[r.from] <= r.cut do r.from = r.from + 1 end
  local used = r.stored + #r.added - r.from + 1
  if used >= most then error('ERR a rate window is full, and the job has no such payouts', 0) end
  return used
end

local function take_slot(r, payout)
  r.added[#r.added + 1] = r.newest
  local k = #r.slots
  r.slots[k + 1], r.slots[k + 2] = int(r.newest), payout
end

for k = 1, #notes, 3 do look(KEYS[notes[k + 1]], notes[k + 2], now) end

-- Texts that are the same for the whole batch. The first event of an entry has time and payout, and the others leave them out.
local first_has = ',"at":' .. now .. ',"payout":"'
local screened, velocity = '[{"type":"payout.screened","v":4' .. first_has, '},{"type":"payout.velocity_checked","v":4,"number":'
local reserved, decided = '},{"type":"payout.budget_reserved","v":4,"amount":', '{"type":"payout.decided","v":3'
local approved = ',"decision":"APPROVED","reason":"POLICY_OK"'
local is_approved = ',"state":"approved","bank_status":"pending","decision":"APPROVED","decided_at":' .. now .. ',"reason":"POLICY_OK","reasons":["POLICY_OK"]'
local is_rejected = ',"state":"rejected","bank_status":"pending","decision":"REJECTED","decided_at":' .. now .. ',"reason":"'
local updated, rated, cause = ',"updated_at":' .. now .. '}', ' ' .. ARGV[5] .. ' ' .. int(window) .. ' 0|', '{"by":"' .. group .. '","cause":"'
local head, received_at = '{"payout":"', '","account":"' .. account .. '","received_at":'

local function rejection(has, t, paise, reason, finding)
  local found = reason .. '","findings":[' .. finding .. ']'
  return decided .. has .. t.decided .. paise .. ',"decision":"REJECTED","reason":"' .. found .. t.status .. ']'
end

local function rejected(t, record, reason, finding)
  return record .. is_rejected .. reason .. '","reasons":["' .. reason .. '"],"findings":[' .. finding .. ']' .. t.version
end

local codes, ids, first, last = {}, {}, nil, nil
for n = 1, given[1] do
  local i = 11 * (n - 1)
  local entry, payout, paise, received, t = rows[i + 1], rows[i + 2], rows[i + 3], rows[i + 4], all[rows[i + 5]]
  local own, vet, fresh, seen, reason = rows[i + 6], rows[i + 7], rows[i + 8], rows[i + 9], rows[i + 10]
  local key, code, e = KEYS[3 + n], 3, nil
  local record = head .. payout .. received_at .. received .. ',"amount":' .. paise .. t.known .. own
  if reason ~= '' then
    e = '[' .. rejection(first_has .. payout .. '"', t, paise, reason, vet)
    call('HSET', key, 'v', '1', 's', rejected(t, record, reason, vet) .. updated)
  else
    local used = int(slots_used(t.rate, tonumber(received)))
    take_slot(t.rate, payout)
    number = number + 1
    local mine, taken, amount = int(number), t.reserved + t.charged, tonumber(paise)
    local before, spent = int(taken), taken + tonumber(t.committed)
    local checked = screened .. payout .. t.screened .. seen .. velocity .. mine .. ',"used":' .. used .. limited .. vet
    local exceeded = ' 0 '
    seen = ',"beneficiary":' .. seen .. fresh
    if spent + amount > t.limit then
      code = 2
      local finding = t.over .. int(spent) .. ',"reserved":' .. before .. ',"committed":' .. t.committed
        .. ',"amount":' .. paise .. ',"number":' .. mine .. '}}'
      e = checked .. '},' .. rejection('', t, paise, 'LIMIT_EXCEEDED', finding)
      record = rejected(t, record, 'LIMIT_EXCEEDED', finding) .. seen .. updated
    else
      code, exceeded = 0, ' -1 '
      t.charged = t.charged + amount
      local room = mine .. t.room .. before .. ',"committed":' .. t.committed .. '}]}'
      e = checked .. reserved .. paise .. ',"number":' .. room .. ',' .. decided .. t.decided .. paise
        .. approved .. t.status .. rows[i + 11] .. ']'
      record = record .. is_approved .. t.version .. seen .. ',"reservation":{"state":"reserved","amount":' .. paise .. ',"number":' .. room .. updated
    end
    local admission = mine .. ' ' .. used .. rated .. mine .. ' ' .. paise .. exceeded .. before .. ' ' .. t.committed .. '|' .. t.windows
    call('HSET', key, 'v', '1', 's', record, 'a', admission)
  end
  last = call('XADD', KEYS[1], '*', 'e', e, 'm', cause .. entry .. '"}')
  first = first or last
  codes[n], ids[n] = code, entry
end

for _, r in pairs(rates) do
  if #r.slots > 0 then
    call('ZREMRANGEBYSCORE', r.key, '-inf', int(r.cut))
    call('ZADD', r.key, unpack(r.slots))
    call('EXPIRE', r.key, window_s + 86400)
  end
end
for _, t in ipairs(all) do
  if t.charged > 0 then
    call('HINCRBY', t.budget, 'r', int(t.charged))
    if t.new then call('EXPIREAT', t.budget, int(math.max(t.ends, tonumber(now) / 1000000) + kept_s)) end
  end
end
call('SET', KEYS[2], int(number))
for k = 1, #notes, 3 do
  if codes[notes[k]] == 0 then note(KEYS[notes[k + 1]], notes[k + 2], now) end
end
if ARGV[2] == '1' then call('XACK', KEYS[1], group, unpack(ids)) end
wrote_own(KEYS[1], group, KEYS[3], runs, first, last)
return codes
