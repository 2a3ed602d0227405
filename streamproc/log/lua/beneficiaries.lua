#!lua
-- Beneficiaries, as domain/beneficiaries.py has it; this file is put before the scripts that note them.
-- KEYS[1], ... as the script has them: hashes of beneficiaries, name -> when last noted (µs)
-- ARGV         as the script has it
-- Returns nothing by itself.
local KEPT_S, NAMES_MAX = 34560000, 8 -- few names each, gone a while after they were last noted
local function note(key, name, at)
  local known = redis.call('HGET', key, name)
  if tonumber(known or '0') < tonumber(at) then redis.call('HSET', key, name, at) end
  if not known and redis.call('HLEN', key) > NAMES_MAX then
    local all, oldest = redis.call('HGETALL', key), 1
    for k = 3, #all, 2 do
      local mine, least = tonumber(all[k + 1]), tonumber(all[oldest + 1])
      if mine < least or (mine == least and all[k] < all[oldest]) then oldest = k end
    end
    redis.call('HDEL', key, all[oldest])
  end
  redis.call('EXPIRE', key, KEPT_S)
end
