-- Give a job back unfinished, at once and uncounted: the worker is shutting down.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 queue's name
-- Returns 1, or 0 when the attempt no longer holds the job.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local record, now = RECORD .. id, now_ms()
local attempt = redis.call('DECR', ARQ_RETRY .. id)
redis.call('DEL', ARQ_IN_PROGRESS .. id)
local old = redis.call('HMGET', record, 'created_at', 'priority', 'task')
redis.call('ZADD', KEYS[1], whole(score(tonumber(old[1]), old[2])), id)
redis.call('HSET', record, 'attempt', attempt)
redis.call('HDEL', record, 'worker', 'token', 'started_at', 'progress')
leave_running(id, old[3])
set_status(id, 'queued', now)
redis.call('PUBLISH', WAKE .. ARGV[3], id)
return 1
