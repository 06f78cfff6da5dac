-- Replaces the value of KEYS[1] if its revision is ARGV[1] (empty: if there is no value) by the
-- revision ARGV[2] with the data ARGV[3]. 1: it is replaced; 0: it is another one.
-- pcall: the error of a command keeps its code in every version of the server.
local value = redis.pcall('hmget', KEYS[1], 'rev', 'data')
if value.err then return value end
if ARGV[1] == '' then
  if value[1] or value[2] then return 0 end
elseif value[1] ~= ARGV[1] then
  return 0
end
local written = redis.pcall('hset', KEYS[1], 'rev', ARGV[2], 'data', ARGV[3])
if type(written) == 'table' and written.err then return written end
return 1
