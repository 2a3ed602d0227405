#!lua flags=no-writes
-- Read what a batch needs: the clock, the policy revision, each payout's record and admission, and beneficiaries.
-- KEYS[1]    hash  policy
-- KEYS[2..]  hash  payouts, and after them the beneficiaries that are asked for
-- ARGV[1]    number of payouts
-- Returns {now µs, policy revision, {version, record, admission} per payout, {name, µs, ...} per beneficiary}.
--   If none of the payouts is known, as is usual, each is nil: one EXISTS is cheaper than an HMGET for each.
-- O(payouts + beneficiaries, each of which holds few names). Changes nothing.
local reply = { int(now_us()), redis.call('HGET', KEYS[1], 'rev') or '0' }
local payouts = whole(ARGV[1], 0, #KEYS - 1)
local known = payouts > 0 and redis.call('EXISTS', unpack(KEYS, 2, payouts + 1)) > 0
for i = 2, payouts + 1 do
  reply[#reply + 1] = known and redis.call('HMGET', KEYS[i], 'v', 's', 'a')
end
for i = payouts + 2, #KEYS do
  reply[#reply + 1] = redis.call('HGETALL', KEYS[i])
end
return reply
