-- Hold an idempotency key for one request while its body arrives; the same request calls again to go on holding it.
-- ARGV  1 key   2 request's token (the id that its job would have)   3 for how long (ms): a request that dies lets go
-- Returns 'free' (it is ours), 'used' (an earlier request was answered), 'held' (another request is under way)
local key = IDEMPOTENCY .. ARGV[1]
local held = redis.call('HMGET', key, 'print', 'by')
if held[1] then return 'used' end
if held[2] and held[2] ~= ARGV[2] then return 'held' end
redis.call('HSET', key, 'by', ARGV[2])
redis.call('PEXPIRE', key, ARGV[3])
return 'free'
