#!lua
-- Give nobody a turn for a while, since the outside system asked for that; and no burst of them afterwards.
-- KEYS[1] string  time of the first turn that nobody has taken (µs)   KEYS[2] string  when a turn was last asked for (µs); both
--   as take_turn.lua has them
-- KEYS[3] string  end of the pause (µs); it expires then
-- ARGV[1] µs of the pause   ARGV[2] the longest pause (µs): one that ends later than this is of before the clock went back
-- ARGV[3] µs between two turns   ARGV[4] burst   ARGV[5] longest wait possible (µs), as in take_turn.lua
-- A longer pause that has begun stays as it is.
-- Returns nothing.  O(1). Safe to resend: the pause ends later by as much.
for i = 1, 5 do whole(ARGV[i], 1, US_MAX) end
local now, longest = now_us(), tonumber(ARGV[2])
local pause = math.min(tonumber(ARGV[1]), longest)
local back = math.max(0, time_at(KEYS[2]) - now)
local turn, left = time_at(KEYS[1]) - back, time_at(KEYS[3]) - back - now
if left > pause and left <= longest then pause = left end
local ends = now + pause
if not (turn >= ends and turn - now <= tonumber(ARGV[5])) then turn = ends end
local keep_ms = math.ceil((turn - now + ARGV[3] * ARGV[4]) / 1000) + 1
redis.call('SET', KEYS[1], int(turn), 'PX', keep_ms)
redis.call('SET', KEYS[2], int(now), 'PX', keep_ms)
redis.call('SET', KEYS[3], int(ends), 'PX', math.ceil(pause / 1000) + 1)
