#!lua
-- A group's own outputs were handled in the step that wrote them: they are passed over instead of delivered to it (ADR 27).
-- This file is put after checks.lua, before the scripts that write for a group or let it pass over; each call names log, group
-- and `runs`.
-- KEYS[1], ... as the script has them: stream log, and zset runs of the group: 'FIRST LAST', the ids that one call wrote, by the ms of LAST
-- ARGV     as the script has it
-- Returns nothing by itself.
-- Why nothing is lost: one call writes neighbouring ids, and nothing is ever written between two ids of a log. So if the
--   next entry that the group would be given lies in a run, everything up to the run's end is its own.
-- Any run may be forgotten: then its entries are delivered, and the worker skips them.
local RUN_MIN, RUNS_MAX = 8, 1000 -- entries in a run, fewer are as cheap to read; runs kept, if a group is far behind: 0.1 MB
local PASSED_MAX = 64 -- runs in one call, some 10 µs each

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

-- Pass over the group's own entries that come next: stored runs, and the run from `first` to `last`, if that is given.
-- Returns how many entries were passed over, and whether `last` was reached.
local function pass_own(log, group, runs, first, last)
  local at, read
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local g = {}
    for k = 1, #row, 2 do g[row[k]] = row[k + 1] end
    if g.name == group then at, read = g['last-delivered-id'], g['entries-read'] end
  end
  if not read then return 0, false end -- no such group; or `entries-read` is unknown, and SETID without it would lose the lag for good
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
    redis.call('XGROUP', 'SETID', log, group, at, 'ENTRIESREAD', int(read + passed))
  end
  redis.call('ZREMRANGEBYSCORE', runs, '-inf', '(' .. parts_of(at))
  return passed, reached
end

-- Pass over what this call wrote for its group, from `first` to `last`, or store it as a run for later.
-- `known` is how many runs there were before the first write.
local function wrote_own(log, group, runs, known, first, last)
  local ms, from = parts_of(first)
  local last_ms, to = parts_of(last)
  if ms ~= last_ms then return end -- cannot be within one call; across ms the entries could not be counted
  local _, reached = pass_own(log, group, runs, first, last)
  if not reached and known < RUNS_MAX and tonumber(to) - tonumber(from) + 1 >= RUN_MIN then
    redis.call('ZADD', runs, ms, first .. ' ' .. last)
  end
end
