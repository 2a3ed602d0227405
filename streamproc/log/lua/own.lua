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
  return not is_before(id, first) and not is_before(last, id)
end

-- The end of the stored run in which an entry lies, or nil.
local function run_end(runs, id)
  for _, run in ipairs(redis.call('ZRANGEBYSCORE', runs, (parts_of(id)), '+inf', 'LIMIT', 0, 4)) do
    local from, to = string.match(run, '^(%S+) (%S+)$')
    if within(id, from, to) then return to end
  end
end

-- A field of a row of XINFO.
local function field_of(row, name)
  for k = 1, #row, 2 do
    if row[k] == name then return row[k + 1] end
  end
end

-- The last id that the group was given, and how many entries it has read, or nothing: there is no such group, or that is
-- unknown, and SETID without it would lose the lag for good.
local function place_of(log, group)
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    local read = field_of(row, 'name') == group and field_of(row, 'entries-read')
    if read then return field_of(row, 'last-delivered-id'), read end
  end
end

-- Pass over the group's own entries that come next: stored runs, and the run from `first` to `last`, if this call wrote one.
-- `known`: how many runs are stored, or nil. Returns how many entries were passed over, and whether `last` was reached.
local function pass_own(log, group, runs, known, first, last)
  local at, read = place_of(log, group)
  if not at or (first and not is_before(at, first)) then return 0, false end
  local passed, reached = 0, false
  for _ = 1, PASSED_MAX do
    -- Where nothing lies before `first`, this call's own run comes next, and nothing follows it yet.
    local following = redis.call('XRANGE', log, '(' .. at, first and '(' .. first or '+', 'COUNT', 1)[1]
    local start, stop = first, last
    if following then start, stop = following[1], run_end(runs, following[1]) end
    if not stop then break end
    local _, from = parts_of(start)
    local _, to = parts_of(stop)
    passed, at, reached = passed + tonumber(to) - tonumber(from) + 1, stop, stop == last
    if reached then break end
  end
  if passed > 0 then
    redis.call('XGROUP', 'SETID', log, group, at, 'ENTRIESREAD', int(read + passed))
  end
  if known ~= 0 then redis.call('ZREMRANGEBYSCORE', runs, '-inf', '(' .. parts_of(at)) end
  return passed, reached
end

-- Pass over what this call wrote for its group, from `first` to `last`, or store it as a run for later.
-- `known` is how many runs there were before the first write.
local function wrote_own(log, group, runs, known, first, last)
  local ms, from = parts_of(first)
  local last_ms, to = parts_of(last)
  if ms ~= last_ms then return end -- cannot be within one call; across ms the entries could not be counted
  local _, reached = pass_own(log, group, runs, known, first, last)
  if not reached and known < RUNS_MAX and tonumber(to) - tonumber(from) + 1 >= RUN_MIN then
    redis.call('ZADD', runs, ms, first .. ' ' .. last)
  end
end
