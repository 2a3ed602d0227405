#!lua
-- Claim deferred entries that are due by the retry clock (retry_clock.lua), and those that are due later than anything is deferred:
-- they are of before there was a retry clock, and Redis's clock went back. They are deferred no longer but pending with this
-- consumer like any entry that it read, so if it dies others take them over in the same way.
-- KEYS[1] stream log   KEYS[2] zset retries of the group   KEYS[3] hash tries of the group   KEYS[4] hash retry clock
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] most entries, ARGV[4] longest deferral (µs)
-- Returns {entry as XCLAIM gives it, 1 if nothing was sent outside for it so far, else 0} for each.  O(limit * log n).
-- That is what the last deferral noted, on this server; the note is removed with the claim, since now something may be sent. It holds
-- if each delivery ended in a deferral: a dead letter of an earlier version left the note, and its count begins anew when it is given back.
-- Safe to resend: after a lost reply the consumer takes up again everything that is pending with it.
whole(ARGV[3], 1, 2 ^ 31)
whole(ARGV[4], 1, US_MAX)
redis.call('HLEN', KEYS[3])
local now, ahead, went_back = retry_clock(KEYS[2], KEYS[4])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', int(now), 'LIMIT', 0, ARGV[3])
if #due == 0 then
  due = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. int(now + tonumber(ARGV[4])), '+inf', 'LIMIT', 0, ARGV[3])
end
if went_back then redis.call('HSET', KEYS[4], 'ahead', int(ahead)) end
local reply, server = {}, nil
for _, id in ipairs(due) do
  local tries, is_unsent = redis.call('HMGET', KEYS[3], id, id .. ':waits', id .. ':unsent'), false
  if tries[3] and tries[3] ~= '' then
    server = server or this_server()
    local row, deferred = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1], (tries[1] or 0) + (tries[2] or 0)
    is_unsent = row and row[4] == deferred and tries[3] == server .. ' ' .. int(deferred)
  end
  local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)
  redis.call('ZREM', KEYS[2], id)
  if entry[1] then
    if is_unsent then redis.call('HDEL', KEYS[3], id .. ':unsent') end
    reply[#reply + 1] = { entry[1], is_unsent and 1 or 0 }
  else
    -- acknowledged meanwhile, by a consumer that did not know of the deferral or only skipped the entry
    redis.call('HDEL', KEYS[3], id, id .. ':waits', id .. ':lane', id .. ':unsent')
  end
end
return reply
