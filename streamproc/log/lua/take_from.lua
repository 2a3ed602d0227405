#!lua
-- Take over entries that are pending with a consumer that is gone. Does not count as a delivery.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] the one that is gone, ARGV[4] ms since it was last heard of, as the caller found,
-- ARGV[5] least ms that an entry has been idle, ARGV[6] most entries
-- Returns their ids; none if it was heard of since.
-- Why Lua: a caller that paused between check and claim could take from a consumer that is back, or from one that claimed first.
-- O(consumers + limit * log n). Safe to resend: what a lost reply named is pending with this consumer.
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
