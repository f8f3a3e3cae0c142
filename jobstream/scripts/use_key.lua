-- Note that an API key was used, unless it has been revoked meanwhile.
-- ARGV  1 key id
-- Returns 1, or 0 when there is no such key.
even_when_full()
local key = API_KEY .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'used_at', whole(now_ms()))
return 1
