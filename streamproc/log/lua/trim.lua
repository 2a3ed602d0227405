#!lua flags=allow-oom
-- Trim the log's beginning: entries that are archived, acknowledged by every group and older than the retention time.
-- Checked and trimmed in one step, so that nothing below the cut can come to be needed in between.
-- KEYS[1] stream log   KEYS[2] hash groups: a mark for each group that was made
-- ARGV[1] id of the archive's last entry; it stays, since the projector knows the log by it
-- ARGV[2] retention (ms)   ARGV[3] most entries to remove now   ARGV[4] 1 for a dry run
-- Returns number removed, id of the first entry before that or '', the cut (lowest bound), and for each bound its name and id:
--   'archive', 'retention', 'pending GROUP' (its oldest entry not acknowledged), 'read GROUP' (the last one delivered to it).
-- Or {'gone', group} if a group was made and is not there, {'lost'} if the archive's last entry is not in the log:
-- then nothing is removed. NOLOG where there is no log.
-- O(groups + entries removed); only whole nodes of the stream go, so a few entries below the cut may stay.
-- Safe to resend: it then removes what is left. Runs also when out of memory, since it frees some.
local call = redis.call
local lost = no_log(KEYS[1])
if lost then return lost end

if ARGV[1] ~= '0-0' and #call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return { 'lost' } end
local now = call('TIME')
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local old = string.format('%d-0', math.max(0, now_ms - tonumber(ARGV[2])))
local bounds = { 'archive', ARGV[1], 'retention', old }

local present = {}
for _, row in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #row, 2 do group[row[i]] = row[i + 1] end
  present[group.name] = true
  local oldest = call('XPENDING', KEYS[1], group.name, '-', '+', 1)[1]
  bounds[#bounds + 1] = (oldest and 'pending ' or 'read ') .. group.name
  bounds[#bounds + 1] = oldest and oldest[1] or group['last-delivered-id']
end
for _, group in ipairs(call('HKEYS', KEYS[2])) do
  if not present[group] then return { 'gone', group } end
end

local cut = ARGV[1]
for i = 4, #bounds, 2 do
  if is_before(bounds[i], cut) then cut = bounds[i] end
end
local first = call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local removed = 0
if ARGV[4] ~= '1' then
  removed = call('XTRIM', KEYS[1], 'MINID', '~', cut, 'LIMIT', ARGV[3])
end
return { removed, first and first[1] or '', cut, unpack(bounds) }
