#!lua
-- Which entries another server may have delivered to a worker before this one, as after a failover.
-- A failover may keep an entry and lose that it was delivered: it comes as if nobody had had it.
-- KEYS[1] stream log   KEYS[2] hash server: `run` the server that was met last, `upto` the log's last id at that moment.
--   `run` is its run and its time as a primary: one that was a replica meanwhile has what another one delivered, or lost
-- ARGV    none
-- Returns that id: what is in the log up to it was written before this server, or its present run, was met; '0-0' for nothing.
-- NOLOG where there is no log.  O(1). Safe to resend: one server is met once.
local call = redis.call
local lost = no_log(KEYS[1])
if lost then return lost end
local met, run = call('HMGET', KEYS[2], 'run', 'upto'), this_server()
if met[1] == run and met[2] then return met[2] end
local info, upto = call('XINFO', 'STREAM', KEYS[1]), '0-0'
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then upto = info[i + 1] end
end
call('HSET', KEYS[2], 'run', run, 'upto', upto)
return upto
