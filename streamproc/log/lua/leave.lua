#!lua
-- Remove a consumer that has nothing pending. Checked and removed in one step: DELCONSUMER would drop its pending entries.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer
-- Returns 1 if it is removed, 0 if it still has pending entries.  O(1).
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
