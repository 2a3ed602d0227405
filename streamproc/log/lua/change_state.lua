#!lua
-- Change policies, tokens or proposals: append the events and write the state that decisions read, in one step.
-- KEYS[1] stream log   KEYS[2] hash of `rev` and: policies by scope, tokens by hash, or proposals by id
-- ARGV[1] revision that the change was planned on, ARGV[2] `e` ('': no events, only the revision moves), ARGV[3] `m`,
-- then field and its JSON ('' removes)
-- Returns {1, entry id}, or {0, current revision} if somebody else changed it first; NOLOG where there is no log.  O(fields).
-- Resent after a lost reply it answers 0: the caller plans again and finds nothing left to change.
local lost = no_log(KEYS[1])
if lost then return lost end
if #ARGV < 3 or #ARGV % 2 == 0 then wrong('a field has no value') end
whole(ARGV[1], 0, US_MAX)
local rev = redis.call('HGET', KEYS[2], 'rev') or '0'
if rev ~= ARGV[1] then
  return { 0, rev }
end
local id = ''
if ARGV[2] ~= '' then id = redis.call('XADD', KEYS[1], '*', 'e', ARGV[2], 'm', ARGV[3]) end
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[2], ARGV[i])
  else
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  end
end
redis.call('HINCRBY', KEYS[2], 'rev', 1)
return { 1, id }
