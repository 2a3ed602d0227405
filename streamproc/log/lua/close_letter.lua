#!lua
-- Close a dead letter: give its entry back to the group that could not handle it, or discard it; and record that.
-- The entry goes back to the group's pending list under its own id: to append its events again would tell every reader of
-- the log the same facts twice.
-- An intent that is discarded before anything of it was recorded gives back what `admit` reserved for it: nothing else would.
-- KEYS[1] stream log   KEYS[2] stream dead letters   KEYS[3] zset retries of the letter's group
-- KEYS[4] hash payout, KEYS[5..] hash budgets of its reservation; where there is one to give back
-- ARGV[1] id of the letter, ARGV[2] group, ARGV[3] id of its entry, ARGV[4] 'redrive' or 'discard',
-- ARGV[5] `e` and ARGV[6] `m` of the record of this; with KEYS[4] also ARGV[7] the payout's version and ARGV[8] its admission,
--   as they were read: what has changed since is left alone
-- Returns {id of the record, paise that are not reserved any more}, '' if there is no such letter, or 'gone' if the entry
--   has left Redis; NOLOG where there is no log.
-- O(windows). Safe to resend: the letter is gone after the first run.
local lost = no_log(KEYS[1])
if lost then return lost end
local frees = #KEYS > 3
if #ARGV ~= (frees and 8 or 6) or #KEYS < 3 then wrong('it has six arguments and three keys, or eight and more') end
redis.call('XLEN', KEYS[1])
redis.call('ZCARD', KEYS[3])
local amount, there = 0, {}
if frees then
  amount = whole(string.match(ARGV[8], '^[^|]*|%d+ (%d+) %-1'), 0, US_MAX)
  local f = redis.call('HMGET', KEYS[4], 'v', 'a', 'q')
  frees = ARGV[4] == 'discard' and (f[1] or '0') == ARGV[7] and f[2] == ARGV[8] and not f[3]
  for k = 5, #KEYS do there[k] = redis.call('HLEN', KEYS[k]) > 0 end
end
if #redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1]) == 0 then
  return ''
end
if ARGV[4] == 'redrive' then
  if #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) == 0 then
    return 'gone'
  end
  redis.call('XCLAIM', KEYS[1], ARGV[2], 'redrive', 0, ARGV[3], 'FORCE', 'JUSTID')
  redis.call('ZADD', KEYS[3], 0, ARGV[3])
end
redis.call('XDEL', KEYS[2], ARGV[1])
if frees then
  redis.call('HDEL', KEYS[4], 'a')
  for k = 5, #KEYS do
    if there[k] then redis.call('HINCRBY', KEYS[k], 'r', string.format('%d', -amount)) end
  end
end
return { redis.call('XADD', KEYS[1], '*', 'e', ARGV[5], 'm', ARGV[6]), frees and amount or 0 }
