#!lua
-- The registry of beneficiaries, as domain/beneficiaries.py has it; this file is put before the scripts that write to it.
-- KEYS[1], ... as the script has them: hashes of beneficiaries, name -> when last noted (µs)
-- ARGV         as the script has it
-- Returns nothing by itself. A script calls `look` for all that it will note, before its first write.
local KEPT_S, NAMES_MAX = 34560000, 8 -- a hash expires so long after its last note; names in one hash
local RENEW_US = 2592000000000 -- a name that was noted longer ago is to be noted again
local noted = {} -- key -> name -> when, or false
-- Read when a name was last noted, and check `at`.
local function look(key, name, at)
  whole(at, 0, US_MAX)
  noted[key] = noted[key] or {}
  if noted[key][name] == nil then noted[key][name] = redis.call('HGET', key, name) end
end
-- Whether the hash names others and not this one: then an approval that found it empty would be a changed beneficiary by now.
local function is_taken(key, name)
  return not noted[key][name] and redis.call('HLEN', key) > 0
end
-- Whether a name was noted so lately that it need not be noted again.
local function is_noted(key, name, now_us)
  return tonumber(redis.call('HGET', key, name) or '0') > now_us - RENEW_US
end
-- Note a name; of more than NAMES_MAX the one that was noted longest ago goes.
local function note(key, name, at)
  local known = noted[key][name]
  if tonumber(known or '0') < tonumber(at) then
    redis.call('HSET', key, name, at)
    noted[key][name] = at
  end
  if not known and redis.call('HLEN', key) > NAMES_MAX then
    local all, oldest = redis.call('HGETALL', key), 1
    for k = 3, #all, 2 do
      local mine, least = tonumber(all[k + 1]), tonumber(all[oldest + 1])
      if mine < least or (mine == least and all[k] < all[oldest]) then oldest = k end
    end
    redis.call('HDEL', key, all[oldest])
    noted[key][all[oldest]] = false
  end
  redis.call('EXPIRE', key, KEPT_S)
end
