#!lua
-- Take a lease on a digest that is due, to tell it; a digest that has counted nothing is removed.
-- KEYS[1] zset digests that are open   KEYS[2] hash digest   KEYS[3] set of what it counted
-- ARGV[1] name of the digest   ARGV[2] lease (µs)   ARGV[3] most examples
-- ARGV[4] longest time (µs) until a digest is due or its lease is over; one that takes longer is due, since the clock went back
-- Returns {} where nothing is to be told (not due, taken by somebody else, nothing counted), else
--   {lease, about, number counted, sum in paise, 1 if there were more than could be counted, examples...}.
-- O(what was counted), where it is removed. Safe to resend: after a lost reply it waits until the lease is over.
local call = redis.call
local now = now_us()
if #KEYS ~= 3 then wrong('it has three keys') end
whole(ARGV[2], 0, US_MAX)
whole(ARGV[3], 0, 2 ^ 31)
whole(ARGV[4], 0, US_MAX)
local due = call('ZSCORE', KEYS[1], ARGV[1])
if not due or (tonumber(due) > now and tonumber(due) <= now + tonumber(ARGV[4])) then return {} end
local found = call('HMGET', KEYS[2], 'about', 'n', 'sum', 'more', 'examples')
if not found[1] or (found[2] == '0' and found[4] == '0') then
  call('ZREM', KEYS[1], ARGV[1])
  call('UNLINK', KEYS[2], KEYS[3])
  return {}
end
whole(found[5], 0, 2 ^ 31)
local lease = int(now + tonumber(ARGV[2]))
call('ZADD', KEYS[1], lease, ARGV[1])
if found[4] == '1' then call('HSET', KEYS[2], 'more', '2') end -- told; what comes beyond from now on makes it 1 again
local reply = { lease, found[1], found[2], found[3], found[4] == '0' and '0' or '1' }
for k = 1, math.min(tonumber(found[5]), tonumber(ARGV[3])) do reply[#reply + 1] = call('HGET', KEYS[2], 'example' .. k) end
return reply
