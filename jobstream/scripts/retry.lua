-- End an attempt that failed, and let the job wait for its next one.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 wait (ms)   4 error (JSON)   5 queue's name   6 how long a record lives at least (ms)
-- Returns 1, or 0 when the attempt no longer holds the job, or when the job was told to stop meanwhile.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local record, now = RECORD .. id, now_ms()
local due = now + tonumber(ARGV[3])
local old = redis.call('HMGET', record, 'errors', 'task', 'status', 'priority')
if old[3] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then return 0 end
redis.call('HSET', record, 'error', ARGV[4], 'errors', (old[1] and old[1] .. ',' or '') .. ARGV[4], 'run_at', whole(due))
redis.call('HDEL', record, 'token', 'worker')
redis.call('DEL', ARQ_IN_PROGRESS .. id)
redis.call('ZADD', KEYS[1], whole(due), id)
if old[4] then redis.call('ZADD', PROMOTE .. ARGV[5], whole(due), id) end
set_status(id, 'retrying', now, ',"run_at":' .. whole(due) .. ',"error":' .. ARGV[4])
leave_running(id, old[2])
local live = due + tonumber(ARGV[6])
if now + redis.call('PTTL', record) < live then
  keep_until(id, live)
  redis.call('PEXPIREAT', ARQ_JOB .. id, whole(live))
  redis.call('PEXPIREAT', ARQ_RETRY .. id, whole(live))
end
redis.call('PUBLISH', WAKE .. ARGV[5], id)
return 1
