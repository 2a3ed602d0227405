#!lua
-- Say that entries are still in hand: nobody takes them over for the claim time from now on.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer, ARGV[3..] entry ids
-- Returns the ids of those that are in this consumer's hands; to have them is no delivery.
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
