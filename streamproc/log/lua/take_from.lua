#!lua
-- Take entries that lie in the hands of a consumer that is gone into this one's; that is no delivery.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] who is gone, ARGV[4] ms for which it was not heard of when it was looked for,
-- ARGV[5] ms for which each entry was in its hands at least, ARGV[6] most entries
-- Returns their ids; none where it was heard of since.
-- Why Lua: who stood still between a look and the taking would take from one who is back, or who took them first.
-- O(consumers + limit * log n). Safe to resend: what a lost reply named is in this consumer's hands.
local idle_ms, held_ms, most = whole(ARGV[4], 0, MS_MAX), whole(ARGV[5], 0, MS_MAX), whole(ARGV[6], 1, 2 ^ 31)
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for k = 1, #row, 2 do c[row[k]] = row[k + 1] end
  if c.name == ARGV[3] and c.idle < idle_ms then return {} end
end
local taken = {}
for n, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', held_ms, '-', '+', most, ARGV[3])) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'JUSTID')
  taken[n] = row[1]
end
return taken
