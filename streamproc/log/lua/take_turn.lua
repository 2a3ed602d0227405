#!lua
-- Take the next turn of a rate that all processes share; each caller is told how long to wait for its turn.
-- KEYS[1] string  time of the first turn that nobody has taken (µs)
-- ARGV[1] µs between two turns   ARGV[2] burst: turns that may be taken at once after a rest
-- ARGV[3] longest wait possible (µs), since no process holds more than one turn; a longer one means that the clock went back
-- Returns the wait in µs.  O(1). Resent after a lost reply it takes another turn: one is wasted, none is given twice.
for i = 1, 3 do whole(ARGV[i], 1, US_MAX) end
local now = now_us()
local between, burst, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local turn = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now - (burst - 1) * between)
if turn - now > longest then turn = now end
local after = turn + between
redis.call('SET', KEYS[1], int(after), 'PX', math.ceil((math.max(0, after - now) + burst * between) / 1000) + 1)
return math.max(0, turn - now)
