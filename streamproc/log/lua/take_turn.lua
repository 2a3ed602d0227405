#!lua
-- Take the next turn of a rate that all processes share, unless it comes too late; each caller is told how long to wait.
-- KEYS[1] string  time of the first turn that nobody has taken (µs)
-- ARGV[1] µs between two turns   ARGV[2] burst: turns that may be taken at once after a rest
-- ARGV[3] longest wait possible (µs), since no process holds more than one turn; a longer one means that the clock went back
-- ARGV[4] longest wait that is taken (µs)   ARGV[5] turns that must be free then beside this one; as many as the burst never are
-- Returns {1, the wait in µs}, or {0, µs until such a turn comes} where none was taken.  O(1).
-- Resent after a lost reply it takes another turn: one is wasted, none is given twice.
for i = 1, 3 do whole(ARGV[i], 1, US_MAX) end
local most, beside = whole(ARGV[4], 0, US_MAX), whole(ARGV[5], 0, US_MAX)
local now = now_us()
local between, burst, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local turn = math.max(time_at(KEYS[1]), now - (burst - 1) * between)
if turn - now > longest then turn = now end
local wait = math.max(0, turn + beside * between - now)
if wait > most then return {0, wait - most} end
local after = turn + between
redis.call('SET', KEYS[1], int(after), 'PX', math.ceil((math.max(0, after - now) + burst * between) / 1000) + 1)
return {1, wait}
