#!lua
-- Record that a digest was told, and begin the next one with what was counted meanwhile.
-- KEYS[1] stream log   KEYS[2] zset digests that are open   KEYS[3] hash digest   KEYS[4] set of what it counted
-- ARGV[1] name of the digest   ARGV[2] lease, as take_digest gave it   ARGV[3] number and ARGV[4] sum (paise) told
-- ARGV[5] time that a digest gathers (µs)   ARGV[6] `e` and ARGV[7] `m` of the entry that records it
-- Returns 1, or 0 where somebody else has the lease by now and will tell it again. NOLOG where there is no log.
-- O(what was counted). Safe to resend: the first run ends the lease.
local call = redis.call
local lost = no_log(KEYS[1])
if lost then return lost end
if #ARGV ~= 7 or #KEYS ~= 4 then wrong('it has seven arguments and four keys') end
local function negative(text) -- as text: a sum may be beyond 2^53, and -0 is no number to Redis
  if text == '0' then return text end
  if not string.find(text, '^[1-9]%d*$') or #text > 18 then wrong('it does not say what was told') end
  return '-' .. text
end
local number, sum = negative(ARGV[3]), negative(ARGV[4])
whole(ARGV[5], 0, US_MAX)
call('XLEN', KEYS[1])
if call('ZSCORE', KEYS[2], ARGV[1]) ~= ARGV[2] or call('EXISTS', KEYS[3]) == 0 then return 0 end
local due = int(now_us() + tonumber(ARGV[5]))
call('HINCRBY', KEYS[3], 'n', number)
call('HINCRBY', KEYS[3], 'sum', sum)
local more = call('HGET', KEYS[3], 'more') == '1' and '1' or '0' -- what came beyond the count since it was taken is told in the next one
call('HSET', KEYS[3], 'first', '', 'more', more, 'examples', '0')
call('UNLINK', KEYS[4])
call('ZADD', KEYS[2], due, ARGV[1])
call('XADD', KEYS[1], '*', 'e', ARGV[6], 'm', ARGV[7])
return 1
