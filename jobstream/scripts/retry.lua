-- End an attempt that failed, and let the job wait for its next one.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 wait (ms)   4 error (JSON)   5 queue's name
-- Returns 1, or 0 when the attempt no longer holds the job.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local record, now = RECORD .. id, now_ms()
local due = now + tonumber(ARGV[3])
local old = redis.call('HMGET', record, 'errors', 'task')
redis.call('HSET', record, 'error', ARGV[4], 'errors', (old[1] and old[1] .. ',' or '') .. ARGV[4], 'run_at', whole(due))
redis.call('HDEL', record, 'token', 'worker')
redis.call('DEL', ARQ_IN_PROGRESS .. id)
redis.call('ZADD', KEYS[1], whole(due), id)
set_status(id, 'retrying', now, ',"run_at":' .. whole(due) .. ',"error":' .. ARGV[4])
leave_running(id, KEYS[1], old[2])
redis.call('PUBLISH', WAKE .. ARGV[5], id)
return 1
