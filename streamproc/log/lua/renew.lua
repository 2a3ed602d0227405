#!lua
-- Renew the claims on entries that are still in hand: their idle time begins anew, so nobody takes them over before the claim time.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer, ARGV[3..] entry ids
-- Returns the ids of those that are pending with this consumer. Does not count as a delivery.
-- O(entries * log n). Safe to resend.
for i = 3, #ARGV do
  if not string.find(ARGV[i], '^%d+%-%d+$') then wrong('it has no such entry') end
end
local held = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    held[#held + 1] = id
  end
end
return held
