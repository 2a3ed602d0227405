#!lua
-- Take, renew or give back a lease.
-- KEYS[1] hash lease: owner `o`, term `n`   KEYS[2] string count of terms
-- ARGV[1] owner   ARGV[2] ms that it lasts from now; 0 gives it back
-- ARGV[3] how the names begin of owners that it is taken from; '' for none
-- Returns {term, owner}; term 0 if somebody else has it, or nobody since it was given back.
-- O(1). Safe to resend: an owner that takes it again renews it.
local call = redis.call
local owner, ms = call('HGET', KEYS[1], 'o'), whole(ARGV[2], 0, MS_MAX)
local gives_way = owner and ARGV[3] ~= '' and owner:sub(1, #ARGV[3]) == ARGV[3]
if owner and owner ~= ARGV[1] and not gives_way then
  -- More is left than anybody takes it for: the clock went back. An owner that lives renews it within that time.
  if ms > 0 and call('PTTL', KEYS[1]) > ms then call('PEXPIRE', KEYS[1], ms) end
  return {0, owner}
end
if ms == 0 then
  call('DEL', KEYS[1])
  return {0, ''}
end
if owner ~= ARGV[1] then call('HSET', KEYS[1], 'o', ARGV[1], 'n', call('INCR', KEYS[2])) end
call('PEXPIRE', KEYS[1], ms)
return {tonumber(call('HGET', KEYS[1], 'n')), ARGV[1]}
