#!lua
-- Rate limit of a token (sliding window): take one request, or say how long until there is one.
-- KEYS[1] list  times (µs) of the requests taken, newest first, at most ARGV[1] of them
-- ARGV[1] requests in a window, > 0   ARGV[2] length of the window (µs)
-- Returns 0 if it was taken, else the µs to wait.
-- O(1) but for a walk along the list's nodes of 8 KB. Resent after a lost reply it takes another: one request is wasted.
local number, window = whole(ARGV[1], 1, 2 ^ 31), whole(ARGV[2], 1, US_MAX)
local now = now_us()
local newest = tonumber(redis.call('LINDEX', KEYS[1], 0) or '0')
if newest > now + window then
  redis.call('DEL', KEYS[1])  -- the clock went back by more than a window
elseif newest > now then
  now = newest
end
local oldest = tonumber(redis.call('LINDEX', KEYS[1], number - 1) or '0')
if oldest > now - window then return oldest + window - now end
redis.call('LPUSH', KEYS[1], int(now))
redis.call('LTRIM', KEYS[1], 0, number - 1)
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
return 0
