-- An API process's heartbeat.
-- ARGV  1 process id   2 beat's lifetime (ms)   3 what it says of itself (JSON)
even_when_full()
local now, life = now_ms(), tonumber(ARGV[2])
redis.call('HSET', API_PROCESS .. ARGV[1], 'info', ARGV[3], 'beat_at', whole(now))
redis.call('PEXPIRE', API_PROCESS .. ARGV[1], whole(life))
redis.call('ZADD', API_PROCESSES, whole(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', API_PROCESSES, '-inf', whole(now - life))
redis.call('PEXPIRE', API_PROCESSES, 3600000)
return 1
