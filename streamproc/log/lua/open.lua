#!lua flags=allow-oom
-- Open a partition: make its stream and groups at the first start, check them at every later one.
-- KEYS[1] stream log   KEYS[2] hash groups: a mark for each group that was made   KEYS[3] hash recovery, while one is under way
-- ARGV[1] 1 if this partition was made before, ARGV[2] number of groups that begin at the end of a log which other groups
--   have read already (they get the mark 'late'); then these groups, then the others
-- Returns '', or the first group that was made and is gone: then nothing is made, since a new group at `$` would skip entries
--   and one at `0` would repeat them.
-- NOLOG where the stream was made and is gone, or is being rebuilt.  O(groups). Safe to resend.
-- Runs also when out of memory: where all is there it writes nothing, and a projector that cannot start trims nothing.
local call = redis.call
if call('EXISTS', KEYS[3]) == 1 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is being recovered')
end
whole(ARGV[2], 0, #ARGV - 2)
call('HLEN', KEYS[2])
local there, present = call('EXISTS', KEYS[1]) == 1, {}
if there then
  for _, group in ipairs(call('XINFO', 'GROUPS', KEYS[1])) do present[group[2]] = true end
elseif ARGV[1] == '1' then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
for i = 3, #ARGV do
  if not present[ARGV[i]] and call('HEXISTS', KEYS[2], ARGV[i]) == 1 then return ARGV[i] end
end
local read = there and call('HLEN', KEYS[2]) > 0
for i = 3, #ARGV do
  local late = read and i < 3 + tonumber(ARGV[2])
  if not present[ARGV[i]] then call('XGROUP', 'CREATE', KEYS[1], ARGV[i], late and '$' or '0', 'MKSTREAM') end
  call('HSETNX', KEYS[2], ARGV[i], not present[ARGV[i]] and late and 'late' or '1')
  present[ARGV[i]] = true -- ARGV may name it twice
end
return ''
