#!lua
-- Which server this is, for server.lua, defer.lua and due_retries.lua: this file is put before each of them, after checks.lua.
-- It is no part of that, since a right that few scripts need is asked for by those alone (script.py).
-- KEYS[1], ... and ARGV as the script has them
-- Returns nothing by itself.

-- This server, its run and its time as a primary: another one may have lost what was written last, or have been set back.
local function this_server()
  local told = redis.call('INFO', 'server', 'replication')
  return string.match(told, 'run_id:(%w+)') .. ' ' .. string.match(told, 'master_replid:(%w+)')
end
