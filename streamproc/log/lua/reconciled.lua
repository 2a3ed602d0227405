#!lua
-- End a recovery: the bank was asked about every account since. Unless another recovery has come, or Redis was lost again.
-- KEYS[1] hash meta
-- ARGV[1] id of the recovery run   ARGV[2] what begins the mark of an account that the bank was asked about
-- Returns 1, or 0 if the last recovery is not that one.  O(marks): one for each account.
-- Resent after a lost reply it answers 0, and the bank is asked once more.
if #KEYS ~= 1 or #ARGV ~= 2 or ARGV[2] == '' then wrong('it has one key and two arguments') end
local call = redis.call
if call('HGET', KEYS[1], 'unreconciled') ~= ARGV[1] then return 0 end
call('HDEL', KEYS[1], 'unreconciled')
for _, mark in ipairs(call('HKEYS', KEYS[1])) do
  if string.sub(mark, 1, #ARGV[2]) == ARGV[2] then call('HDEL', KEYS[1], mark) end
end
return 1
