-- Give this history of the data a name, unless somebody else has just done so.
-- ARGV  1 what the key was seen to hold ('' for nothing)   2 what it is to hold: `<name> <replication id>`
-- Returns what it holds now.
if (redis.call('GET', EPOCH) or '') == ARGV[1] then redis.call('SET', EPOCH, ARGV[2]) end
return redis.call('GET', EPOCH)
