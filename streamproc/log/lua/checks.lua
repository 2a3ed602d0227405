#!lua
-- What most scripts need: checks of their rights and arguments before the first write, the clock, numbers and ids as texts. This file is
-- put before the scripts that use it.
-- KEYS[1], ... and ARGV as the script has them
-- Returns nothing by itself; raises the call's error. Redis does not roll back, and a wrong count could make a loop run
-- for ever on the server's one thread.
local function wrong(what) error('ERR a script was called wrongly: ' .. what, 0) end
-- Whether the caller's user may run a command, or an error: asked of all that a script has, before its first line (script.py).
local function may_run(command, second)
  local allowed
  if second then allowed = redis.acl_check_cmd(command, second, KEYS[1]) else allowed = redis.acl_check_cmd(command, KEYS[1]) end
  if not allowed then error("NOPERM no permissions to run the '" .. string.lower(command) .. "' command", 0) end
end
-- An argument as a whole number from `least` to `most`, or an error.
local function whole(text, least, most)
  local n = tonumber(text)
  if not n or n % 1 ~= 0 or n < least or n > most then
    wrong(string.sub(tostring(text), 1, 40) .. string.format(' is not a whole number of %.0f to %.0f', least, most))
  end
  return n
end
local US_MAX, MS_MAX, S_MAX = 2 ^ 53, 2 ^ 43, 2 ^ 33 -- a time that Redis takes and a double holds; some 270 years

local format = string.format
-- Numbers are doubles, whole and below 2^53, so %d gives every digit; %.0f took three times as long.
local function int(x) return format('%d', x) end

-- Redis's clock in µs.
local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The time (µs) under a key; 0 where there is none, or what is no time.
local function time_at(key)
  return tonumber(string.match(redis.call('GET', key) or '', '^%d+$')) or 0
end

-- The answer where there is no log, else false: XADD would begin a new log in the place of a lost one.
local function no_log(key)
  return redis.call('EXISTS', key) == 0 and redis.error_reply('NOLOG ' .. key .. ' is gone')
end

local function parts_of(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

-- Whether one id is before another. Both parts of an id may be beyond 2^53, so they are compared as texts.
local function is_before(id, other)
  local mine, my_n = parts_of(id)
  local others, other_n = parts_of(other)
  if mine == others then mine, others = my_n, other_n end
  return #mine < #others or (#mine == #others and mine < others)
end
