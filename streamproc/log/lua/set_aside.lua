#!lua
-- Begin the recovery of a partition, or take over an interrupted one. From here on nobody writes to the partition:
-- scripts answer NOLOG while there is no log, also to workers and producers that still run.
-- KEYS[1] stream log   KEYS[2] stream rescued: where the log goes, if there is one   KEYS[3] hash recovery
-- ARGV[1] id of this recovery run
-- Returns 1 if a log was set aside, now or by the run that was interrupted, else 0.
-- O(1). Safe to resend.
local call = redis.call
if #ARGV ~= 1 or #KEYS ~= 3 then wrong('it has one argument and three keys') end
if call('EXISTS', KEYS[3]) == 0 then
  local there = call('EXISTS', KEYS[1])
  if there == 1 then
    call('RENAME', KEYS[1], KEYS[2])
  else
    call('DEL', KEYS[2]) -- of an earlier recovery
  end
  call('HSET', KEYS[3], 'aside', there)
end
call('HSET', KEYS[3], 'run', ARGV[1])
return tonumber(call('HGET', KEYS[3], 'aside'))
