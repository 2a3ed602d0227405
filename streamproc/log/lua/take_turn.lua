#!lua
-- Take the next turn of a rate that all processes share, unless it comes too late; each caller is told how long to wait.
-- KEYS[1] string  time of the first turn that nobody has taken (µs)
-- KEYS[2] string  when a turn was last asked for (µs): if that is to come, the clock went back, and turns come that much earlier
-- ARGV[1] µs between two turns   ARGV[2] burst: turns that may be taken at once after a rest
-- ARGV[3] longest wait possible (µs), by the turns that processes can hold; a longer one is of before the clock went back
-- ARGV[4] longest wait that is taken (µs)   ARGV[5] turns that must be free then beside this one; as many as the burst never are
-- Returns {1, the wait in µs}, or {0, µs until such a turn comes} where none was taken.  O(1).
-- Resent after a lost reply it takes another turn: one is wasted, none is given twice.
for i = 1, 3 do whole(ARGV[i], 1, US_MAX) end
local most, beside = whole(ARGV[4], 0, US_MAX), whole(ARGV[5], 0, US_MAX)
local now = now_us()
local between, burst, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local back = math.max(0, time_at(KEYS[2]) - now)
local turn = math.max(now - (burst - 1) * between, time_at(KEYS[1]) - back)
if turn - now > longest then turn = now end
local wait = math.max(0, turn + beside * between - now)
local is_taken = wait <= most
if is_taken or back > 0 then
  local after = is_taken and turn + between or turn
  local keep_ms = math.ceil((math.max(0, after - now) + burst * between) / 1000) + 1
  redis.call('SET', KEYS[1], int(after), 'PX', keep_ms)
  redis.call('SET', KEYS[2], int(now), 'PX', keep_ms)
end
if not is_taken then return {0, wait - most} end
return {1, wait}
