#!lua
-- Take back the last delivery of entries in hand that nothing was done about: they wait for their turn. What was delivered often,
-- and never given back, may be what kills its workers.
-- KEYS[1] stream log
-- ARGV[1] group, ARGV[2] consumer, ARGV[3..] entry ids
-- Those that are not pending with this consumer are left alone. Their claims are renewed with it.
-- Returns nothing.  O(entries * log n).
-- Resent after a lost reply it takes back two deliveries at worst: a killer kills once more.
for i = 3, #ARGV do
  if not string.find(ARGV[i], '^%d+%-%d+$') then wrong('it has no such entry') end
end
for i = 3, #ARGV do
  local id = ARGV[i]
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if row then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', math.max(0, row[4] - 1), 'JUSTID')
  end
end
