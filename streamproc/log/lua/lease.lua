#!lua
-- Take, renew or give back a lease.
-- KEYS[1] hash lease: owner `o`, term `n`   KEYS[2] string count of terms
-- ARGV[1] owner   ARGV[2] ms that it lasts from now; 0 gives it back
-- Returns {term, owner}: the term is 0 where somebody else has it, or nobody after it was given back.
-- O(1). Safe to resend: whoever has it renews it.
local call = redis.call
local owner, ms = call('HGET', KEYS[1], 'o'), whole(ARGV[2], 0, MS_MAX)
if owner and owner ~= ARGV[1] then return {0, owner} end
if ms == 0 then
  call('DEL', KEYS[1])
  return {0, ''}
end
if not owner then call('HSET', KEYS[1], 'o', ARGV[1], 'n', call('INCR', KEYS[2])) end
call('PEXPIRE', KEYS[1], ms)
return {tonumber(call('HGET', KEYS[1], 'n')), ARGV[1]}
