-- A worker's heartbeat, with the announcement of its tasks.
-- ARGV  1 worker id   2 beat's lifetime (ms)   3 n, the number of heartbeat fields   4… 2n names and values
--       then: task, announcement, task, announcement, …
-- Returns the catalogue's version.
even_when_full()
local worker, life, fields = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, kept = now_ms(), 7 * 86400000
redis.call('HSET', WORKER .. worker, 'beat_at', whole(now), unpack(ARGV, 4, 3 + 2 * fields))
redis.call('PEXPIRE', WORKER .. worker, whole(life))
redis.call('ZADD', WORKERS, whole(now), worker)
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', whole(now - life))
redis.call('PEXPIRE', WORKERS, 3600000)
local changed = false
for at = 4 + 2 * fields, #ARGV, 2 do
  redis.call('ZADD', ANNOUNCED, whole(now), ARGV[at])
  if redis.call('HGET', CATALOGUE, ARGV[at]) ~= ARGV[at + 1] then
    redis.call('HSET', CATALOGUE, ARGV[at], ARGV[at + 1])
    changed = true
  end
end
if changed then redis.call('INCR', CATALOGUE_VERSION) end
redis.call('ZREMRANGEBYSCORE', ANNOUNCED, '-inf', whole(now - kept))
redis.call('PEXPIRE', ANNOUNCED, whole(kept))
redis.call('PEXPIRE', CATALOGUE, whole(kept))
redis.call('PEXPIRE', CATALOGUE_VERSION, whole(kept))
return tonumber(redis.call('GET', CATALOGUE_VERSION) or '0')
