#!lua
-- Give a dead letter back to the group that could not handle it, or discard it.
-- KEYS[1] stream log   KEYS[2] stream dead letters
-- ARGV[1] id of the dead letter, ARGV[2] `m` of the new entry or '' to discard
-- Returns the new entry's id, '' if discarded, or false if there is no such dead letter.
-- O(1). Safe to resend: the letter is gone after the first run.
local letter = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not letter then
  return false
end
local id = ''
if ARGV[2] ~= '' then
  id = redis.call('XADD', KEYS[1], '*', 'e', letter[2][6], 'm', ARGV[2])
end
redis.call('XDEL', KEYS[2], ARGV[1])
return id
