-- Let go of an idempotency key: the request that held it was refused, so the key stands for nothing.
-- ARGV  1 key   2 the request's token
local key = IDEMPOTENCY .. ARGV[1]
local held = redis.call('HMGET', key, 'print', 'by')
if not held[1] and held[2] == ARGV[2] then redis.call('DEL', key) end
