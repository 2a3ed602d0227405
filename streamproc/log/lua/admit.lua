#!lua
-- Admit payouts: take rate slots and reserve budget. Each payout is answered once for either part, and that answer stays.
-- KEYS[1]    string  the partition's dense counter of admissions and settlements
-- KEYS[2]    stream  the log; only its existence is checked
-- KEYS[3..]  hash payouts, zset rates, hash budgets; ARGV names them by index
-- ARGV[1]    s       how long a budget is kept after its window ended (or after now, if that is later)
-- ARGV[2]    MessagePack, an array of two, as in grant.lua:
--   terms, flat, of each: as counters.lua has them;
--   rows, flat, of each payout: index of its hash, payout id, amount (paise) and received at (µs) as texts, its terms' number
-- Returns for each payout its admission 'RATE|BUDGET|WINDOWS', as field `a` of its hash keeps it:
--   RATE 'number used count window limited' or '', BUDGET 'number amount exceeded reserved committed ...' or '',
--   WINDOWS the windows JSON, or '' where this call recorded them: the caller has just sent them.
-- One field for all of it: every field is two more arguments to write, to log and to allocate.
-- NOLOG where there is no log: budgets may be half rebuilt then, and what a left-over worker takes would be lost.
-- Why Lua: read, compare and add are one step; everything is read and checked before the first write.
-- O(payouts * windows + log n of each rate set). Safe to resend: a recorded answer is given again.
local lost = no_log(KEYS[2])
if lost then return lost end
local keep = tonumber(ARGV[1])
local now = tonumber(call('TIME')[1])
local number = tonumber(call('GET', KEYS[1]) or '0')
local first = number
local payouts, dirty, reply = {}, {}, {}

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

whole(keep, 0, S_MAX)
local request = cmsgpack.unpack(ARGV[2])
if type(request) ~= 'table' or #request ~= 2 then wrong('it has no payouts') end
local terms, rows, term_list, i = request[1], request[2], {}, 1
while i <= #terms do term_list[#term_list + 1], i = terms_at(terms, i) end

if #rows % 5 ~= 0 then wrong('it has a part of a payout') end
for j = 1, #rows, 5 do
  local p, payout, paise, t = payout_of(whole(rows[j], 3, #KEYS)), rows[j + 1], rows[j + 2], term_list[whole(rows[j + 4], 1, #term_list)]
  local amount, received = whole(paise, 0, US_MAX), whole(rows[j + 3], 0, US_MAX)
  local ask_rate = t.rate > 0 and p.ra == ''
  local ask_budget = t.windows >= 0 and p.ba == ''
  local limited, my_number = false, 0
  if ask_rate then
    local used, start, time = slots_used(t, received)
    limited = used >= t.count
    if limited then count_window(t, start) else take_slot(t, start, time, payout) end
    number = number + 1
    my_number = number
    p.ra = format('%d %d %d %d %d', my_number, used, t.count, t.window_us, limited and 1 or 0)
  elseif p.ra ~= '' then
    limited = string.sub(p.ra, -1) == '1'
  end
  if ask_budget and t.rate > 0 and limited and not t.hold then ask_budget = false end
  if ask_budget then
    local exceeded = exceeded_by(t, amount)
    if exceeded < 0 then charge(t, amount) end
    if my_number == 0 then
      number = number + 1
      my_number = number
    end
    p.ba = format('%d %s %d%s', my_number, paise, exceeded, told(t))
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
write_counters(keep, now)
if number > first then call('SET', KEYS[1], int(number)) end
return reply
