#!lua
-- Commit: acknowledge inputs and append their outputs, each input exactly once.
-- KEYS[1] stream log   KEYS[2] string counter   KEYS[3] zset timers   KEYS[4] stream dead letters
-- KEYS[5] zset retries of the group   KEYS[6] hash tries of the group
-- KEYS[7] hash policy   KEYS[8] zset runs of the group (own.lua)
-- KEYS[9..] hash payouts, budgets and beneficiaries; ARGV names them by index
-- ARGV[1] group   ARGV[2] number of inputs   ARGV[3] policy revision that decided them, or '' for none; then for each:
--   entry id, index of its payout's hash or 0, version that was read (or -1: write without a check),
--   record JSON or '' (no change), `e` or '' (no output), `m` without its closing brace, number of arguments that follow:
--   none, or: s to keep a finished record, -1 to keep for good one that is open again, or 0, settlement 'committed' | 'released' | '',
--   1 if the entry was taken from retries or claims, or waited, dead letter's JSON `problem` or '', number of budget hashes to
--   settle, number of timers, number of notes, total of fees committed with the amount (paise), what the archive has of the
--   reservation of a payout that has left Redis ('STATE FEES ADMISSION', else ''), the hashes' indexes,
--   then score (µs) and member of each timer, then of each note the index of a beneficiaries' hash, the name to note in it,
--   when (µs), and 1 if the decision holds only while that hash names nobody else
-- Returns for each input: 1 done; 0 acknowledged earlier, nothing was written, and only traces of earlier attempts were removed;
--   2 stale, nothing was written: the payout has moved on, the policies have and there are outputs (a freeze binds whatever was
--   being decided when it came), or somebody else was noted where nobody was.
-- NOLOG where there is no log: an input that nobody acknowledged must not look like one that was handled earlier.
-- Why Lua: XACK answers 1 to one caller only; whoever gets it appends, in the same step.
-- O(inputs). Safe to resend: a second run finds the inputs acknowledged or the payouts moved on.
local call, tonumber = redis.call, tonumber
local lost = no_log(KEYS[1])
if lost then return lost end

local there = {} -- index of a budget -> whether it exists; read before the first write
-- Commit or release a payout's reservation in the budgets that exist. False if there is none, or it is settled so already.
local function settle(payout, wanted, fees, indexes)
  -- `a` is the admission as admit.lua wrote it; `q` its settlement, once there is one; `f` the fees committed with it.
  local f = call('HMGET', payout, 'q', 'a', 'f')
  local text, exceeded = string.match(f[2] or '', '|%d+ (%d+) (%-?%d+)')
  local held, amount, charged = f[1] or (exceeded == '-1' and 'reserved'), tonumber(text), tonumber(f[3] or '0')
  local allowed = held == 'reserved' or (held == 'committed' and (wanted == 'released' or fees > charged))
  if not allowed then return false end
  if wanted == 'released' then fees = 0 end
  local reserved, committed = 0, wanted == 'committed' and amount + fees or 0
  if held == 'reserved' then reserved = -amount else committed = committed - amount - charged end
  for _, index in ipairs(indexes) do
    local key = KEYS[index]
    if there[index] then
      if reserved ~= 0 then call('HINCRBY', key, 'r', int(reserved)) end
      if committed ~= 0 then call('HINCRBY', key, 'c', int(committed)) end
    end
  end
  call('HSET', payout, 'q', wanted)
  if fees ~= charged then call('HSET', payout, 'f', int(fees)) end
  return true
end

local function dead_letter(id, problem)
  local entry = call('XRANGE', KEYS[1], id, id)[1]
  local e, m = '[]', '{}'
  if entry then
    e, m = entry[2][2] or e, entry[2][4] or m -- an entry without our fields is kept as it is
  end
  call('XADD', KEYS[4], '*', 'entry', id, 'group', ARGV[1], 'e', e, 'm', m, 'problem', problem)
end

-- Everything is read before the first write, so that a key of a wrong type fails the whole call.
local inputs, versions, runs = whole(ARGV[2], 0, #ARGV), {}, call('ZCARD', KEYS[8])
local RECALLED = '^(%l+) (%d+) ([^|]*|%d+ %d+ %-?%d+.*)$'
local SETTLEMENTS = { [''] = true, committed = true, released = true }

local looked = {}
local function look_at(command, index)
  if not looked[index] then looked[index] = { call(command, KEYS[index]) } end
  return looked[index][1]
end

-- Check what only few inputs have, before the first write: counts, numbers, and the types of the keys.
local function check_rare(at, more, payout)
  local windows, timers, notes = whole(ARGV[at + 4], 0, more), whole(ARGV[at + 5], 0, more), whole(ARGV[at + 6], 0, more)
  if more ~= 9 + windows + 2 * timers + 4 * notes then wrong('it has a part of an input') end
  whole(ARGV[at], -1, S_MAX)
  whole(ARGV[at + 7], 0, US_MAX)
  local settlement, recalled, first = ARGV[at + 1], ARGV[at + 8], at + 9
  if not SETTLEMENTS[settlement] or (settlement ~= '' and payout == 0) then wrong('it settles nothing') end
  if recalled ~= '' and (payout == 0 or not string.find(recalled, RECALLED)) then wrong('it recalls nothing') end
  if settlement ~= '' then whole(look_at('GET', 2) or 0, 0, US_MAX) end
  for k = first, first + windows - 1 do
    local index = whole(ARGV[k], 9, #KEYS)
    there[index] = look_at('HLEN', index) > 0
  end
  first = first + windows
  if timers > 0 then look_at('ZCARD', 3) end
  for k = first, first + 2 * timers - 1, 2 do whole(ARGV[k], 0, US_MAX) end
  first = first + 2 * timers
  for k = first, first + 4 * notes - 1, 4 do look(KEYS[whole(ARGV[k], 9, #KEYS)], ARGV[k + 1], ARGV[k + 2]) end
  if ARGV[at + 2] == '1' then
    look_at('ZCARD', 5)
    look_at('HLEN', 6)
  end
  if ARGV[at + 3] ~= '' then look_at('XLEN', 4) end
end

local outdated = ARGV[3] ~= '' and (call('HGET', KEYS[7], 'rev') or '0') ~= ARGV[3]
local i = 4
for n = 1, inputs do
  local payout, more = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 6])
  if not (payout and more and more >= 0 and string.find(ARGV[i], '^%d+%-%d+$')) then wrong('it has no such input') end
  if payout > 0 then
    versions[payout] = call('HGET', KEYS[payout], 'v') or '0'
    if not tonumber(versions[payout]) then wrong('a payout has no version') end
  elseif ARGV[i + 3] ~= '' then
    wrong('a record is of no payout')
  end
  if more > 0 then check_rare(i + 7, more, payout) end
  i = i + 7 + more
end
if i ~= #ARGV + 1 then wrong('it has a part of an input') end

-- Remove traces of earlier attempts.
local function forget(id)
  call('ZREM', KEYS[5], id)
  call('HDEL', KEYS[6], id, id .. ':waits', id .. ':lane', id .. ':unsent')
end

-- Write what only few inputs have: settlement, timers, notes; and remove traces of earlier attempts. Returns the completed `m`.
local function write_rare(at, id, payout, m)
  local windows, timers, notes = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local first = at + 9
  if ARGV[at + 8] ~= '' and call('HEXISTS', KEYS[payout], 'a') == 0 then
    local q, fees, a = string.match(ARGV[at + 8], RECALLED)
    if q == 'reserved' then call('HSET', KEYS[payout], 'a', a) else call('HSET', KEYS[payout], 'a', a, 'q', q, 'f', fees) end
  end
  if ARGV[at + 1] ~= '' then
    local indexes = {}
    for w = 1, windows do indexes[w] = tonumber(ARGV[first + w - 1]) end
    if settle(KEYS[payout], ARGV[at + 1], tonumber(ARGV[at + 7]), indexes) then m = m .. ',"settled":' .. int(call('INCR', KEYS[2])) end
  end
  first = first + windows
  for k = first, first + 2 * timers - 1, 2 do call('ZADD', KEYS[3], ARGV[k], ARGV[k + 1]) end
  first = first + 2 * timers
  for k = first, first + 4 * notes - 1, 4 do note(KEYS[tonumber(ARGV[k])], ARGV[k + 1], ARGV[k + 2]) end
  if ARGV[at + 2] == '1' then forget(id) end
  return m
end

-- Whether somebody else was noted where an approval counts on being first.
local function came_second(at)
  local first = at + 9 + tonumber(ARGV[at + 4]) + 2 * tonumber(ARGV[at + 5])
  for k = first, first + 4 * tonumber(ARGV[at + 6]) - 1, 4 do
    if ARGV[k + 3] == '1' and is_taken(KEYS[tonumber(ARGV[k])], ARGV[k + 1]) then return true end
  end
  return false
end

local reply, first, last = {}, nil, nil
i = 4
for n = 1, inputs do
  local id, payout, version, record, e, m = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local more = tonumber(ARGV[i + 6])
  local moved = payout > 0 and version ~= '-1' and (versions[payout] ~= version or (outdated and e ~= ''))
  if moved or (more > 0 and came_second(i + 7)) then
    reply[n] = 2
  elseif call('XACK', KEYS[1], ARGV[1], id) == 0 then
    reply[n] = 0
    if more > 0 and ARGV[i + 9] == '1' then forget(id) end -- who was faster may not have known of them
  else
    reply[n] = 1
    if more > 0 then m = write_rare(i + 7, id, payout, m) end
    if record ~= '' then
      versions[payout] = int(tonumber(versions[payout]) + 1)
      call('HSET', KEYS[payout], 'v', versions[payout], 's', record)
      local keep = more > 0 and ARGV[i + 7] or '0'
      if keep == '-1' then call('PERSIST', KEYS[payout]) elseif keep ~= '0' then call('EXPIRE', KEYS[payout], keep) end
    end
    if e ~= '' then
      last = call('XADD', KEYS[1], '*', 'e', e, 'm', m .. '}')
      first = first or last
    end
    if more > 0 and ARGV[i + 10] ~= '' then dead_letter(id, ARGV[i + 10]) end
  end
  i = i + 7 + more
end
if first then wrote_own(KEYS[1], ARGV[1], KEYS[8], runs, first, last) end
return reply
