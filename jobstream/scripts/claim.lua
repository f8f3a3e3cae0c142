-- Claim due jobs for one worker: a lease with a token per attempt, in one call for all free slots.
-- KEYS  1 the queue's zset
-- ARGV  1 queue's name   2 worker id   3 how many at most   4 lease (ms)   5 how long a record lives at least (ms)
--       6… task, most that may run, task, most that may run, … for the tasks with `max_running`
-- Returns {ms until the next due entry or -1, {id, token, attempt, payload or '', timeout or '', stop, known, crashes, spent,
-- taken over, waited (ms)}, …}:
-- `stop` is 1 when the job was told to stop before; `known` is 0 for a job that a stock arq client enqueued; `crashes`
-- counts the workers that died with it, `spent` the attempts before a client ran it again. The last of them has just died
-- when `taken over` is 1.
even_when_full()
local queue, queue_name, worker = KEYS[1], ARGV[1], ARGV[2]
local limit, lease, live = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local answer = {-1}

local grace = after_outage(now, lease)

local most = {}
for at = 6, #ARGV, 2 do most[ARGV[at]] = tonumber(ARGV[at + 1]) end

-- Jobs of a task whose worker died no longer count, and a limit may have been raised: those held back fill what is free.
for task, allowed in pairs(most) do
  -- After an outage leases have run out whose holders live.
  if not grace then redis.call('ZREMRANGEBYSCORE', RUNNING .. task, '-inf', whole(now)) end
  if limit > 0 and redis.call('EXISTS', PARKED .. task) == 1 then unpark(task, allowed - redis.call('ZCARD', RUNNING .. task)) end
end

-- True when the job may run beside those of its task that run already; else it waits for one of them to end.
local function may_run(id, task, due)
  if not task or not most[task] then return true end
  if redis.call('ZSCORE', RUNNING .. task, id) or redis.call('ZCARD', RUNNING .. task) < most[task] then
    redis.call('ZADD', RUNNING .. task, whole(now + lease), id)
    redis.call('PEXPIRE', RUNNING .. task, 86400000)
    redis.call('ZREM', PARKED .. task, id)
    return true
  end
  redis.call('ZADD', PARKED .. task, 'NX', due, id)
  redis.call('PEXPIRE', PARKED .. task, 86400000)
  redis.call('ZADD', queue, 'XX', whole(now + 60000), id) -- looked at again then, should nobody call it
  return false
end

-- Whether anybody asked a stock worker to stop anything: nobody, mostly.
local aborts = redis.call('EXISTS', ARQ_ABORT) == 1

local held_back = 0

-- False when the entry stays where it is, true when it has moved on: taken, or held back.
local function take(id, due)
  local record = RECORD .. id
  local old = redis.call('HMGET', record, 'status', 'timeout', 'task', 'worker', 'crashes', 'created_at', 'spent', 'version', 'run_at')
  local taken_over = old[4] and (old[1] == 'running' or old[1] == 'cancelling')
  if taken_over and grace then return false end
  local stop = old[1] == 'cancelling' or (aborts and redis.call('ZSCORE', ARQ_ABORT, id))
  if not stop and not may_run(id, old[3], due) then
    held_back = held_back + 1
    return true
  end
  local payload = redis.call('GET', ARQ_JOB .. id)
  local attempt = redis.call('INCR', ARQ_RETRY .. id)
  redis.call('PEXPIRE', ARQ_RETRY .. id, whole(live))
  local token = worker .. '#' .. attempt .. '#' .. whole(now)
  redis.call('SET', ARQ_IN_PROGRESS .. id, token, 'PX', whole(lease))
  redis.call('ZADD', queue, 'XX', whole(now + lease), id)
  local created_at = old[6] or whole(now)
  if not old[6] then
    redis.call('HSET', record, 'id', id, 'queue', queue_name, 'created_at', created_at, 'max_attempts', 1)
    redis.call('ZADD', INDEX, created_at, id)
  end
  local crashes = tonumber(old[5] or 0)
  if taken_over then crashes = redis.call('HINCRBY', record, 'crashes', 1) end
  local status = stop and 'cancelling' or 'running'
  local version = (tonumber(old[8]) or 0) + 1
  redis.call('HSET', record, 'status', status, 'version', version, 'attempt', attempt, 'worker', worker,
    'token', token, 'started_at', whole(now))
  if old[9] then redis.call('HDEL', record, 'run_at') end
  move(id, old[1], status, created_at)
  if redis.call('PTTL', record) < live / 2 then
    if payload then redis.call('PEXPIRE', ARQ_JOB .. id, whole(live)) end
    keep_until(id, now + live)
  end
  tell(id, version, 'status', status_data(status, attempt, ',"worker":"' .. worker .. '"'), now, old[1] or '-')
  answer[#answer + 1] = {id, token, attempt, payload or '', old[2] or '', stop and 1 or 0, old[6] and 1 or 0, crashes,
    tonumber(old[7] or 0), taken_over and 1 or 0, (now - due) % 1e9} -- a priority is a multiple of 1e9
  return true
end

-- Delayed jobs with a priority wait aside until they are due: in the queue their priority would run them too early.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', PROMOTE .. queue_name, '-inf', whole(now), 'LIMIT', 0, 1000)) do
  local due = redis.call('ZSCORE', PROMOTE .. queue_name, id)
  redis.call('ZADD', queue, 'XX', whole(score(tonumber(due), redis.call('HGET', RECORD .. id, 'priority'))), id)
  redis.call('ZREM', PROMOTE .. queue_name, id)
end

-- Entries that a stock worker runs stay due: look past them, but not without end (one script must not block Redis).
local staying, page = 0, limit
while #answer <= limit and staying + held_back < 2000 do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', whole(now), 'WITHSCORES', 'LIMIT', staying, page)
  if not due[1] then break end
  for at = 1, #due, 2 do
    if #answer > limit then break end
    if redis.call('EXISTS', ARQ_IN_PROGRESS .. due[at]) == 1 or not take(due[at], due[at + 1]) then
      staying = staying + 1
    end
  end
  page = 100
end
local next_due = redis.call('ZRANGEBYSCORE', queue, '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if next_due[2] then answer[1] = math.max(0, math.ceil(tonumber(next_due[2]) - now)) end
if held_back > 0 and staying + held_back >= 2000 then answer[1] = 0 end -- there may be more behind them
local promote = redis.call('ZRANGE', PROMOTE .. queue_name, 0, 0, 'WITHSCORES')
if promote[2] then
  local wait = math.max(0, math.ceil(tonumber(promote[2]) - now))
  if answer[1] < 0 or wait < answer[1] then answer[1] = wait end
end
return answer
