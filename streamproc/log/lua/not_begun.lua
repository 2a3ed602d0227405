#!lua
-- Take back the last delivery of entries in hand that nothing was done about: they wait for their turn. What was delivered often,
-- and never given back, may be what kills its workers. That they wait is noted until their commit: whoever takes them over from
-- one who died does not open them before their turn (take_up.lua).
-- KEYS[1] stream log   KEYS[2] hash tries of the group
-- ARGV[1] group, ARGV[2] consumer, then for each: entry id, '1' if it overtakes others that wait, else '0'
-- Those that are not pending with this consumer are left alone. Their claims are renewed with it.
-- Returns nothing.  O(entries * log n).
-- Resent after a lost reply it takes back two deliveries at worst: a killer kills once more.
if #ARGV % 2 ~= 0 then wrong('it has a part of an entry') end
for i = 3, #ARGV, 2 do
  if not string.find(ARGV[i], '^%d+%-%d+$') then wrong('it has no such entry') end
  whole(ARGV[i + 1], 0, 1)
end
redis.call('HLEN', KEYS[2])
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if row then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', math.max(0, row[4] - 1), 'JUSTID')
    redis.call('HSET', KEYS[2], id .. ':lane', ARGV[i + 1])
  end
end
