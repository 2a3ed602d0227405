#!lua
-- What a group wrote itself was handled in the step that wrote it: such entries are passed over instead of delivered to it.
-- This file is put before the scripts that write for a group or let it pass; each call names log, group and `runs`.
-- KEYS[1], ... as the script has them: stream log, and zset runs of the group: 'FIRST LAST', the ids of what one call wrote, by the ms of LAST
-- ARGV     as the script has it
-- Returns nothing by itself.
-- Why nothing is lost: what one call writes has neighbouring ids, and nothing is ever written between two ids of a log. So
--   where the next entry that a group would be given lies in a run, everything up to the run's end is its own.
-- What is not known to be a run is delivered and skipped by the worker, so any run may be forgotten.
local RUN_MIN, RUNS_MAX = 8, 1000 -- entries, fewer are as cheap to read; runs, of a group that is far behind: 0.1 MB
local PASSED_MAX = 64 -- runs in one call, some 10 µs each

local function parts_of(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

-- Both parts of an id may be beyond 2^53, so ids are compared as text of one length.
local function padded_id(id)
  local ms, n = parts_of(id)
  return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #n) .. n
end

local function within(id, first, last)
  local here = padded_id(id)
  return padded_id(first) <= here and here <= padded_id(last)
end

-- The end of the run in which an entry lies, or nil.
local function run_end(runs, id, first, last)
  if first and within(id, first, last) then return last end
  for _, run in ipairs(redis.call('ZRANGEBYSCORE', runs, (parts_of(id)), '+inf', 'LIMIT', 0, 4)) do
    local from, to = string.match(run, '^(%S+) (%S+)$')
    if within(id, from, to) then return to end
  end
end

-- Pass over what comes next and is the group's own: runs that were noted, and the one from `first` to `last`, if it is given.
-- Returns how many entries, and whether that run's end was reached.
local function pass_own(log, group, runs, first, last)
  local at, read
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local g = {}
    for k = 1, #row, 2 do g[row[k]] = row[k + 1] end
    if g.name == group then at, read = g['last-delivered-id'], g['entries-read'] end
  end
  if not read then return 0, false end -- no such group, or its lag is not known and would be lost for good
  local passed, reached = 0, false
  for _ = 1, PASSED_MAX do
    local following = redis.call('XRANGE', log, '(' .. at, '+', 'COUNT', 1)[1]
    local stop = following and run_end(runs, following[1], first, last)
    if not stop then break end
    local _, from = parts_of(following[1])
    local _, to = parts_of(stop)
    passed, at, reached = passed + tonumber(to) - tonumber(from) + 1, stop, stop == last
  end
  if passed > 0 then
    redis.call('XGROUP', 'SETID', log, group, at, 'ENTRIESREAD', string.format('%d', read + passed))
  end
  redis.call('ZREMRANGEBYSCORE', runs, '-inf', '(' .. parts_of(at))
  return passed, reached
end

-- What this call wrote for its group, from `first` to `last`; `known` is how many runs there were before the first write.
local function wrote_own(log, group, runs, known, first, last)
  local ms, from = parts_of(first)
  local last_ms, to = parts_of(last)
  if ms ~= last_ms then return end -- never within one call, and a run that cannot be counted is none
  local _, reached = pass_own(log, group, runs, first, last)
  if not reached and known < RUNS_MAX and tonumber(to) - tonumber(from) + 1 >= RUN_MIN then
    redis.call('ZADD', runs, ms, first .. ' ' .. last)
  end
end
