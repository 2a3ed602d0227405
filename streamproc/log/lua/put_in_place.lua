#!lua
-- End the recovery of a partition: the staged log becomes the log, in one step.
-- KEYS[1] stream staged   KEYS[2] stream log   KEYS[3] stream rescued   KEYS[4] hash recovery
-- ARGV[1] id of this recovery run, ARGV[2] s  how long the log that was set aside is kept for people
-- Returns 1, or 0 if another run has taken over.  O(1).
-- Resent after a lost reply it answers 0, though the log is in place: the caller has to look at it.
local call = redis.call
if #KEYS ~= 4 then wrong('it has four keys') end
whole(ARGV[2], 0, S_MAX)
if call('HGET', KEYS[4], 'run') ~= ARGV[1] then return 0 end
call('RENAME', KEYS[1], KEYS[2])
call('DEL', KEYS[4])
call('EXPIRE', KEYS[3], ARGV[2])
return 1
