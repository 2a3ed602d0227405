#!lua
-- Take up entries that were claimed for this consumer from others (XCLAIM with JUSTID, which counts no delivery), unless
-- they were delivered so often that they may be what kills their workers, or waited in the slow lane when it died.
-- KEYS[1] stream log   KEYS[2] zset retries of the group   KEYS[3] hash tries of the group
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] most deliveries of an entry, this one included; or 'turn' to take up whatever has its
--   turn; or '' to take up again all that this process may have had: it did not die of them, so that counts as no delivery.
-- ARGV[4..] entry ids
-- Returns {deliveries, id, entry} for each that is taken up, {deliveries, id} for each that was delivered too often, and
--   {deliveries, id, '1' if it overtakes, else '0'} for each that waited (not_begun.lua); those that are not pending with this
--   consumer, are deferred or have left the log are left out.
-- For what is taken up again something may have been sent outside: no deferral that is under way still may note that nothing was
-- (defer.lua).
-- Deliveries after which the entry was deferred killed nobody, and are not counted.
-- O(entries * log n). Safe to resend: it counts a delivery twice at worst.
local is_again, is_turn = ARGV[3] == '', ARGV[3] == 'turn'
local most = (is_again or is_turn) and math.huge or whole(ARGV[3], 0, 2 ^ 31)
for i = 4, #ARGV do
  if not string.find(ARGV[i], '^%d+%-%d+$') then wrong('it has no such entry') end
end
redis.call('ZCARD', KEYS[2])
redis.call('HLEN', KEYS[3])
local reply = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if row and not redis.call('ZSCORE', KEYS[2], id) then
    local tries = redis.call('HMGET', KEYS[3], id, id .. ':waits', id .. ':lane')
    local n = math.max(0, row[4] - tonumber(tries[1] or 0) - tonumber(tries[2] or 0))
    if tries[3] and not (is_again or is_turn) then
      reply[#reply + 1] = { n, id, tries[3] }
    elseif n >= most then
      reply[#reply + 1] = { n, id }
    else
      local count = row[4] + (is_again and 0 or 1)
      local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', count)[1]
      if entry then
        if is_again then redis.call('HSET', KEYS[3], id .. ':unsent', '') end
        reply[#reply + 1] = { n + count - row[4], id, entry }
      end
    end
  end
end
return reply
