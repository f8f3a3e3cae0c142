-- Give an API key another secret; the one before stays valid for a while.
-- ARGV  1 key id   2 digest of the new secret   3 how long the old one stays valid (ms)
-- Returns the key's fields, or {} when there is no such key.
local key = API_KEY .. ARGV[1]
local old = redis.call('HGET', key, 'digest')
if not old then return {} end
redis.call('HSET', key, 'digest', ARGV[2], 'old_digest', old, 'old_until', whole(now_ms() + tonumber(ARGV[3])))
return redis.call('HGETALL', key)
