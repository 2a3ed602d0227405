#!lua
-- Close a dead letter: give its entry back to the group that could not handle it, or discard it; and record that.
-- The entry goes back to the group's pending list under its own id: to append its events again would tell every reader of
-- the log the same facts twice.
-- KEYS[1] stream log   KEYS[2] stream dead letters   KEYS[3] zset retries of the letter's group
-- ARGV[1] id of the letter, ARGV[2] group, ARGV[3] id of its entry, ARGV[4] 'redrive' or 'discard',
-- ARGV[5] `e` and ARGV[6] `m` of the record of this
-- Returns the id of the record, '' if there is no such letter, or 'gone' if the entry has left Redis;
-- NOLOG where there is no log.
-- O(1). Safe to resend: the letter is gone after the first run.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('NOLOG ' .. KEYS[1] .. ' is gone')
end
if #ARGV ~= 6 or #KEYS ~= 3 then wrong('it has six arguments and three keys') end
redis.call('XLEN', KEYS[1])
redis.call('ZCARD', KEYS[3])
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
return redis.call('XADD', KEYS[1], '*', 'e', ARGV[5], 'm', ARGV[6])
