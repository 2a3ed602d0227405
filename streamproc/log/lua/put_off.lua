#!lua
-- Give nobody a turn for a while, since the outside system asked for that; and no burst of them afterwards.
-- KEYS[1] string  time of the first turn that nobody has taken (µs), as take_turn.lua has it
-- KEYS[2] string  end of the pause (µs); it expires then
-- ARGV[1] µs of the pause   ARGV[2] the longest pause (µs): one that ends later than this is of before the clock went back
-- ARGV[3] µs between two turns   ARGV[4] burst, as in take_turn.lua
-- A longer pause that has begun stays as it is.
-- Returns nothing.  O(1). Safe to resend: the pause ends later by as much.
for i = 1, 4 do whole(ARGV[i], 1, US_MAX) end
local now, pause, longest = now_us(), tonumber(ARGV[1]), tonumber(ARGV[2])
local turn, left = time_at(KEYS[1]), time_at(KEYS[2]) - now
if left > pause and left <= longest then return end
local ends = now + math.min(pause, longest)
if turn < ends or turn > ends + longest then turn = ends end
redis.call('SET', KEYS[2], int(ends), 'PX', math.ceil((ends - now) / 1000) + 1)
redis.call('SET', KEYS[1], int(turn), 'PX', math.ceil((turn - now + ARGV[3] * ARGV[4]) / 1000) + 1)
