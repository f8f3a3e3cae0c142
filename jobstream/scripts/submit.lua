-- Store a job and put it on its queue: record, log, indexes, arq's keys, event and wake-up, all or nothing.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 queue's name   3 task   4 payload   5 delay (ms)   6 run at (ms, 0: now)   7 how long it may wait (ms)
--       8 tags, separated by spaces   9 until when the caller waits (ms, 0: for ever)   10 idempotency key or ''
--       11 fingerprint of the request   12… more fields of the record: name, value, …
-- Returns {'stored', now, due} (ms); {'taken', record} when the id is (a repeated call gets its own job back); {'replayed',
-- record} when the idempotency key stands for that job; {'mismatch'} when it stands for another request; {'late', now}
-- when the caller has given up: Redis was frozen, and what was answered with an error must not happen afterwards.
local id, queue_name, task = ARGV[1], ARGV[2], ARGV[3]
local record, key = RECORD .. id, IDEMPOTENCY .. ARGV[10]
local now = now_ms()
if redis.call('EXISTS', record, ARQ_JOB .. id, ARQ_RESULT .. id) > 0 then
  return {'taken', redis.call('HGETALL', record)}
end
if ARGV[10] ~= '' then
  local held = redis.call('HMGET', key, 'print', 'id')
  if held[1] and redis.call('EXISTS', RECORD .. held[2]) == 1 then
    if held[1] ~= ARGV[11] then return {'mismatch'} end
    return {'replayed', redis.call('HGETALL', RECORD .. held[2])}
  end
end
if tonumber(ARGV[9]) > 0 and now > tonumber(ARGV[9]) then return {'late', now} end
if ARGV[10] ~= '' then
  redis.call('HSET', key, 'print', ARGV[11], 'id', id)
  redis.call('PEXPIRE', key, 86400000)
end
local due = math.max(now + tonumber(ARGV[5]), tonumber(ARGV[6]))
local status = due > now and 'scheduled' or 'queued'
redis.call('HSET', record, 'id', id, 'task', task, 'queue', queue_name, 'status', status, 'version', 1, 'attempt', 0,
  'created_at', whole(now), 'tags', ARGV[8], unpack(ARGV, 12))
local priority, owner = 0, nil
for at = 12, #ARGV, 2 do
  if ARGV[at] == 'priority' then priority = tonumber(ARGV[at + 1]) end
  if ARGV[at] == 'owner' then owner = ARGV[at + 1] end
end
if due > now then
  redis.call('HSET', record, 'run_at', whole(due))
  redis.call('ZADD', KEYS[1], whole(due), id)
  if priority ~= 0 then redis.call('ZADD', PROMOTE .. queue_name, whole(due), id) end
else
  redis.call('ZADD', KEYS[1], whole(score(due, priority)), id)
end
local wait = due - now + tonumber(ARGV[7])
redis.call('SET', ARQ_JOB .. id, ARGV[4], 'PX', whole(wait))
move(id, nil, status, whole(now))
redis.call('ZADD', INDEX, whole(now), id)
redis.call('ZADD', INDEX_TASK .. task, whole(now), id)
for tag in string.gmatch(ARGV[8], '[^ ]+') do redis.call('ZADD', INDEX_TAG .. tag, whole(now), id) end
if owner then redis.call('ZADD', INDEX_OWNER .. owner, whole(now), id) end
tell(id, 1, 'status', status_data(status, 0), now, '-')
keep_until(id, now + wait, expiry_member(id, task, ARGV[8], owner))
redis.call('PUBLISH', WAKE .. queue_name, id)
return {'stored', now, due}
