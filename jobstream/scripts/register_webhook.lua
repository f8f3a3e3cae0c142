-- Register an endpoint for the ends of a tenant's jobs.
-- ARGV  1 id   2 owner ('': nobody)   3 how many it may have   4… fields: name, value, …
-- Returns 1, or 0 when the tenant has so many already.
local id, owner, now = ARGV[1], ARGV[2], whole(now_ms())
-- Jobs of nobody have no index of their own: then those of all tenants are counted, which only an admin can see anyway.
local index = owner == '' and WEBHOOKS or WEBHOOKS_OF .. owner
if redis.call('ZCARD', index) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', WEBHOOK .. id, 'created_at', now, unpack(ARGV, 4))
redis.call('ZADD', WEBHOOKS, now, id)
redis.call('ZADD', index, now, id)
redis.call('SADD', WEBHOOKS_IN_USE .. owner, id)
return 1
