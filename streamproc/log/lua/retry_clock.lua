#!lua
-- The clock of a group's retries, for defer.lua and due_retries.lua: this file is put before the two, after checks.lua.
-- KEYS[1], ... as the script has them: zset retries of the group, and hash retry clock; each call names both
-- ARGV     as the script has it
-- Returns nothing by itself.
-- It is Redis's clock, but never behind the last deferral: what Redis's clock went back by since is added (`ahead`) for as long as
-- anything is deferred. So no entry waits for Redis's clock to get there again, and none for longer than its own delay from then on.
-- Only a deferral moves `last`: a look, of which there are five a second, would be a write that waits for the disk.

-- The time by it (µs), by how much it is ahead of Redis's clock, and whether that is news.
local function retry_clock(retries, clock)
  local kept = redis.call('HMGET', clock, 'last', 'ahead')
  local last, ahead = tonumber(kept[1] or '0'), tonumber(kept[2] or '0')
  if redis.call('ZCARD', retries) == 0 then last, ahead = 0, 0 end
  local now = now_us() + ahead
  if now >= last then return now, ahead, false end
  return last, ahead + last - now, true
end
