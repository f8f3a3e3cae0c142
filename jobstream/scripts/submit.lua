-- Store a job and put it on its queue: record, log, indexes, arq's keys, event and wake-up, all or nothing.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 queue's name   3 task   4 payload   5 delay (ms)   6 run at (ms, 0: now)   7 how long it may wait (ms)
--       8 tags, separated by spaces   9 priority   10… more fields of the record: name, value, …
-- Returns {1, record} as stored; {0, record} when the id is taken (a repeated call gets its own job back).
local id, queue_name, task = ARGV[1], ARGV[2], ARGV[3]
local record = RECORD .. id
if redis.call('EXISTS', record, ARQ_JOB .. id, ARQ_RESULT .. id) > 0 then
  return {0, redis.call('HGETALL', record)}
end
local now = now_ms()
local due = math.max(now + tonumber(ARGV[5]), tonumber(ARGV[6]))
local status = due > now and 'scheduled' or 'queued'
redis.call('HSET', record, 'id', id, 'task', task, 'queue', queue_name, 'attempt', 0, 'created_at', whole(now), 'tags', ARGV[8])
if #ARGV > 9 then redis.call('HSET', record, unpack(ARGV, 10)) end
local priority = tonumber(ARGV[9])
if priority ~= 0 then redis.call('HSET', record, 'priority', priority) end
if due > now then redis.call('HSET', record, 'run_at', whole(due)) end
set_status(id, status)
redis.call('ZADD', INDEX, whole(now), id)
redis.call('ZADD', INDEX_TASK .. task, whole(now), id)
for tag in string.gmatch(ARGV[8], '[^ ]+') do redis.call('ZADD', INDEX_TAG .. tag, whole(now), id) end
local wait = due - now + tonumber(ARGV[7])
redis.call('SET', ARQ_JOB .. id, ARGV[4], 'PX', whole(wait))
if due > now then
  redis.call('ZADD', KEYS[1], whole(due), id)
  if priority ~= 0 then redis.call('ZADD', PROMOTE .. queue_name, whole(due), id) end
else
  redis.call('ZADD', KEYS[1], whole(score(due, priority)), id)
end
say_status(id, status, 0, now)
keep_until(id, now + wait)
redis.call('PUBLISH', WAKE .. queue_name, id)
return {1, redis.call('HGETALL', record)}
