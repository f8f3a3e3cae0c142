-- Claim due jobs for one worker: a lease with a token per attempt, in one call for all free slots.
-- KEYS  1 the queue's zset
-- ARGV  1 queue's name   2 worker id   3 how many at most   4 lease (ms)   5 how long a record lives at least (ms)
-- Returns {ms until the next due entry or -1, {id, token, attempt, payload or '', timeout or '', stop, known}, …}:
-- `stop` is 1 when the job was told to stop before; `known` is 0 for a job that a stock arq client enqueued.
local queue, queue_name, worker = KEYS[1], ARGV[1], ARGV[2]
local limit, lease, live = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local answer = {-1}
-- Entries that a stock worker runs stay due: look past them, but not without end (one script must not block Redis).
local due = redis.call('ZRANGEBYSCORE', queue, '-inf', whole(now), 'LIMIT', 0, limit + 1000)
for _, id in ipairs(due) do
  if #answer > limit then break end
  if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 0 then
    local record = RECORD .. id
    local payload = redis.call('GET', ARQ_JOB .. id)
    local attempt = redis.call('INCR', ARQ_RETRY .. id)
    redis.call('PEXPIRE', ARQ_RETRY .. id, whole(live))
    local token = worker .. '#' .. attempt .. '#' .. whole(now)
    redis.call('SET', ARQ_IN_PROGRESS .. id, token, 'PX', whole(lease))
    redis.call('ZADD', queue, 'XX', whole(now + lease), id)
    local known = redis.call('HEXISTS', record, 'created_at')
    if known == 0 then
      redis.call('HSET', record, 'id', id, 'queue', queue_name, 'created_at', whole(now), 'max_attempts', 1)
      redis.call('ZADD', INDEX, whole(now), id)
    end
    local old = redis.call('HMGET', record, 'status', 'timeout')
    local stop = (old[1] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id)) and 1 or 0
    set_status(id, stop == 1 and 'cancelling' or 'running')
    redis.call('HSET', record, 'attempt', attempt, 'worker', worker, 'started_at', whole(now))
    redis.call('HDEL', record, 'run_at')
    if payload then redis.call('PEXPIRE', ARQ_JOB .. id, whole(live)) end
    say_status(id, stop == 1 and 'cancelling' or 'running', attempt, now, ',"worker":"' .. worker .. '"')
    keep_until(id, now + live)
    answer[#answer + 1] = {id, token, attempt, payload or '', old[2] or '', stop, known}
  end
end
local next_due = redis.call('ZRANGEBYSCORE', queue, '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if next_due[2] then answer[1] = math.max(0, math.ceil(tonumber(next_due[2]) - now)) end
return answer
