-- Claim due jobs for one worker: a lease with a token per attempt, in one call for all free slots.
-- KEYS  1 the queue's zset
-- ARGV  1 queue's name   2 worker id   3 how many at most   4 lease (ms)   5 how long a record lives at least (ms)
--       6 claim's number, 7 the last number that the worker has heard an answer to (0, 0: not numbered)
--       8 tasks that the worker has, each between two spaces ('': all)   9 how long a job may wait for its task (ms)
--       10 how many suspects at most   11 a job is one after so many crashes
--       12 how many jobs of an owner may run, unless something else was set for it (0: any number)
--       13 what headroom.lua is told of this worker ('': no slot is kept for anybody)
--       14… task, most that may run, task, most that may run, … for the tasks with `max_running`
-- Returns {-2} for a claim that a later one, or itself, has overtaken: it takes nothing. Else {ms until the next due entry
-- or -1, {id, token, attempt, payload or '', timeout or '', stop, known, crashes, spent,
-- taken over, waited (ms), owner or ''}, …}:
-- `stop` is 1 when the job was told to stop before; `known` is 0 for a job that a stock arq client enqueued; `crashes`
-- counts the workers that died with it, `spent` the attempts before a client ran it again. The last of them has just died
-- when `taken over` is 1.
even_when_full()
local queue, queue_name, worker = KEYS[1], ARGV[1], ARGV[2]
local limit, lease, live = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local number, heard, tasks, missing = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local suspects, suspect_from = tonumber(ARGV[10]), tonumber(ARGV[11])
local now = now_ms()
local answer = {-1}

-- A claim whose answer was lost has taken jobs that nobody runs. The worker's next one shows it: they are given back, as
-- if never begun. And should a claim come late, when its worker has given up on it and asked again, it takes nothing.
if number > 0 then
  local before = redis.call('SET', CLAIMS .. worker, ARGV[6], 'PX', '3600000', 'GET')
  if before then
    local last, from, at, ids = string.match(before, '^(%d+) ?(%S*) ?(%S*) ?(.*)$')
    if number <= tonumber(last) then
      redis.call('SET', CLAIMS .. worker, before, 'PX', 3600000)
      return {-2}
    end
    if tonumber(last) > heard then
      local begins, ends = worker .. '#', '#' .. at
      for id in string.gmatch(ids, '%S+') do
        local token = redis.call('HGET', RECORD .. id, 'token')
        local is_of_that_claim = token and string.sub(token, 1, #begins) == begins and string.sub(token, -#ends) == ends
        if is_of_that_claim and holds(id, token) then give_back(id, from, now) end
      end
    end
  end
end

local grace = after_outage(now, lease)

-- What is there only now and then is asked for together.
local seldom = redis.call('EXISTS', ROOMS .. queue_name, LACKED .. queue_name, PROMOTE .. queue_name, FULL .. queue_name, ARQ_ABORT) > 0

local most = {}
for at = 14, #ARGV, 2 do most[ARGV[at]] = tonumber(ARGV[at + 1]) end

-- Jobs of a task whose worker died no longer count, and a limit may have been raised: those held back fill what is free.
for task, allowed in pairs(most) do
  -- After an outage leases have run out whose holders live.
  if not grace then redis.call('ZREMRANGEBYSCORE', RUNNING .. task, '-inf', whole(now)) end
  if limit > 0 and redis.call('EXISTS', PARKED .. task) == 1 then unpark(PARKED .. task, allowed - redis.call('ZCARD', RUNNING .. task), RUNNING .. task) end
end

local all_turns
local function turn()
  all_turns = all_turns or turns()
  return all_turns
end

-- Of the owners that have jobs waiting in rooms a few are looked after.
if seldom then
  for _, owner in ipairs(redis.call('SRANDMEMBER', ROOMS .. queue_name, 3)) do turn().look_after(queue_name, owner, now) end
end

-- True when the job may run beside the others of its owner that run already.
local tidied = {}
local function owner_may_run(owner, id)
  local allowed = turn().limits(owner).running or tonumber(ARGV[12])
  if allowed == 0 then return true end
  local running = RUNNING .. '=' .. owner
  if not tidied[owner] and not grace then redis.call('ZREMRANGEBYSCORE', running, '-inf', whole(now)) end
  tidied[owner] = true
  return redis.call('ZCARD', running) < allowed or redis.call('ZSCORE', running, id)
end

local room
-- True when no slot is kept from the owner.
local function may_have_slot(owner)
  if ARGV[13] == '' then return true end
  room = room or headroom(ARGV[13], now, turn)
  return room.may_have(owner, #answer - 1)
end

local verdicts = {}
local function knows(task)
  if verdicts[task] == nil then
    verdicts[task] = tasks == '' or string.find(tasks, ' ' .. task .. ' ', 1, true) ~= nil
  end
  return verdicts[task]
end

-- What workers without the task have left, this one takes.
local lacked = {}
for _, task in ipairs(seldom and redis.call('SMEMBERS', LACKED .. queue_name) or {}) do
  lacked[task] = true
  if knows(task) then
    if limit > 0 then unpark(left_key(queue_name, task), limit) end
    if redis.call('EXISTS', left_key(queue_name, task)) == 0 then redis.call('SREM', LACKED .. queue_name, task) end
  end
end
local left = false

-- Leave the job to workers that have its task: out of the way of those behind it, and looked at again in a minute. False
-- when it has waited for long, and no such worker was heard of for as long.
local function leave(id, task, due)
  local waits = left_key(queue_name, task)
  local since = redis.call('ZSCORE', waits, id) or due
  local announced = redis.call('ZSCORE', ANNOUNCED, task) or 0
  if (now - since) % 1e9 >= missing and now - announced >= missing then -- a priority is a multiple of 1e9
    redis.call('ZREM', waits, id)
    return false
  end
  if redis.call('ZADD', waits, 'NX', due, id) == 1 then left = true end
  redis.call('PEXPIRE', waits, 86400000)
  redis.call('SADD', LACKED .. queue_name, task)
  redis.call('PEXPIRE', LACKED .. queue_name, 86400000)
  redis.call('ZADD', queue, 'XX', whole(now + 60000), id)
  return true
end

-- True when the job may run beside those of its task that run already; else it waits for one of them to end.
local function may_run(id, task, due, owner)
  if not task or not most[task] then return true end
  if redis.call('ZSCORE', RUNNING .. task, id) or redis.call('ZCARD', RUNNING .. task) < most[task] then
    redis.call('ZADD', RUNNING .. task, whole(now + lease), id)
    redis.call('PEXPIRE', RUNNING .. task, 86400000)
    redis.call('ZREM', PARKED .. task, id)
    if owner then redis.call('ZREM', PARKED .. task .. ' ' .. owner, id) end
    return true
  end
  if owner then
    redis.call('ZADD', PARKED .. task .. ' ' .. owner, 'NX', whole(due), id)
    redis.call('PEXPIRE', PARKED .. task .. ' ' .. owner, 86400000)
    stand_behind(PARKED .. task, now, '=' .. owner)
  else
    redis.call('ZADD', PARKED .. task, 'NX', due, id)
  end
  redis.call('PEXPIRE', PARKED .. task, 86400000)
  redis.call('ZADD', queue, 'XX', whole(now + 60000), id) -- looked at again then, should nobody call it
  return false
end

-- Whether anybody asked a stock worker to stop anything: nobody, mostly.
local aborts = seldom and redis.call('EXISTS', ARQ_ABORT) == 1

local held_back = 0

-- What jobs that begin together have in common, by the number of the attempt.
local starts = {}
local function begin(attempt)
  local text, said = whole(attempt), ',"worker":"' .. worker .. '"'
  local start = {attempt = text, at = whole(now), token = worker .. '#' .. text .. '#' .. whole(now), lease_ends = whole(now + lease),
    running = status_data('running', text, said), cancelling = status_data('cancelling', text, said)}
  starts[attempt] = start
  return start
end

-- False when the entry stays where it is, true when it has moved on: taken, or held back. `attempts`: how many have begun.
local function take(id, due, attempts)
  local record = RECORD .. id
  local old = redis.call('HMGET', record, 'status', 'version', 'log_bytes', 'created_at', 'task', 'timeout', 'run_at', 'owner', 'batch')
  local was, task, owner, batch = old[1], old[5], old[8], old[9]
  -- A job that has never begun has none of this: to look for what is not there takes longest.
  local before = (attempts or was ~= 'queued') and redis.call('HMGET', record, 'worker', 'crashes', 'spent') or {}
  local taken_over = before[1] and (was == 'running' or was == 'cancelling')
  if taken_over and grace then return false end
  local stop = was == 'cancelling' or (aborts and redis.call('ZSCORE', ARQ_ABORT, id))
    or (batch and redis.call('HGET', RECORD .. batch, 'status') == 'cancelling')
  local crashes = as_number(before[2]) + (taken_over and 1 or 0)
  if not stop then
    if owner and not taken_over then
      local priority = redis.call('HGET', record, 'priority')
      due = turn().seat(queue_name, owner, id, score(tonumber(old[7] or old[4]), priority), now)
      if not due then
        held_back = held_back + 1
        return true
      end
    end
    if task and not knows(task) and leave(id, task, due) then
      if owner then turn().leave(queue_name, owner, id, now) end
      held_back = held_back + 1
      return true
    end
    if crashes >= suspect_from and suspects < 1 then
      if owner then turn().leave(queue_name, owner, id, now) end
      return false
    end
    if owner and not (owner_may_run(owner, id) and may_have_slot(owner)) then return false end
    if not may_run(id, task, due, owner) then
      if owner then turn().leave(queue_name, owner, id, now) end
      held_back = held_back + 1
      return true
    end
    if crashes >= suspect_from then suspects = suspects - 1 end
    if lacked[task] then redis.call('ZREM', left_key(queue_name, task), id) end
  end
  if owner then
    turn().leave(queue_name, owner, id, now)
    if room then room.count(owner) end
    if (turn().limits(owner).running or tonumber(ARGV[12])) > 0 then
      redis.call('ZADD', RUNNING .. '=' .. owner, whole(now + lease), id)
      redis.call('PEXPIRE', RUNNING .. '=' .. owner, 86400000)
    end
  end
  local attempt = as_number(attempts) + 1
  local start = starts[attempt] or begin(attempt)
  redis.call('SET', ARQ_RETRY .. id, start.attempt, 'PX', ARGV[5])
  redis.call('SET', ARQ_IN_PROGRESS .. id, start.token, 'PX', ARGV[4])
  gather('ZADD', queue, start.lease_ends, id)
  local created_at = old[4] or whole(now)
  if not old[4] then
    redis.call('HSET', record, 'id', id, 'queue', queue_name, 'created_at', created_at, 'max_attempts', 1)
    redis.call('ZADD', INDEX, created_at, id)
  end
  if taken_over then redis.call('HSET', record, 'crashes', whole(crashes)) end
  local status = stop and 'cancelling' or 'running'
  local version = as_number(old[2]) + 1
  local bytes = tell(id, event_text(version, 'status', start[status], now), 'status', old[3], was or '-')
  redis.call('HSET', record, 'status', status, 'version', whole(version), 'log_bytes', bytes, 'attempt', start.attempt,
    'worker', worker, 'token', start.token, 'started_at', start.at)
  if old[7] then redis.call('HDEL', record, 'run_at') end
  move(id, was, status, created_at, owner, gather, batch)
  -- A record of ours lives for so long after its submit, at least: a young one need not be asked.
  if (not task or now - created_at > live / 2) and redis.call('PTTL', record) < live / 2 then
    redis.call('PEXPIRE', ARQ_JOB .. id, ARGV[5])
    keep_until(id, now + live)
  end
  answer[#answer + 1] = {id, start.token, attempt, '', old[6] or '', stop and 1 or 0, task and 1 or 0, crashes,
    as_number(before[3]), taken_over and 1 or 0, (now - due) % 1e9, owner or ''} -- a priority is a multiple of 1e9
  return true
end

-- Delayed jobs with a priority wait aside until they are due: in the queue their priority would run them too early.
for _, id in ipairs(seldom and redis.call('ZRANGEBYSCORE', PROMOTE .. queue_name, '-inf', whole(now), 'LIMIT', 0, 1000) or {}) do
  local due = redis.call('ZSCORE', PROMOTE .. queue_name, id)
  redis.call('ZADD', queue, 'XX', whole(score(tonumber(due), redis.call('HGET', RECORD .. id, 'priority'))), id)
  redis.call('ZREM', PROMOTE .. queue_name, id)
end

-- Entries that a stock worker runs stay due: look past them, but not without end (one script must not block Redis).
local staying, page = 0, limit
while #answer <= limit and staying + held_back < 2000 do
  local due = redis.call('ZRANGEBYSCORE', queue, '-inf', '(' .. whole(now + 1), 'WITHSCORES', 'LIMIT', whole(staying), whole(page))
  if not due[1] then break end
  local names = {}
  for at = 1, #due, 2 do
    names[at], names[at + 1] = ARQ_IN_PROGRESS .. due[at], ARQ_RETRY .. due[at]
  end
  local arq = redis.call('MGET', unpack(names)) -- holder, attempts, holder, attempts, …
  for at = 1, #due, 2 do
    if #answer > limit then break end
    if arq[at] or not take(due[at], due[at + 1], arq[at + 1]) then staying = staying + 1 end
  end
  do_gathered()
  page = 100
end
if #answer > 1 then
  local names = {}
  for at = 2, #answer do names[at - 1] = ARQ_JOB .. answer[at][1] end
  for at, payload in ipairs(redis.call('MGET', unpack(names))) do answer[at + 1][4] = payload or '' end
end
if #answer > 1 and seldom and redis.call('EXISTS', FULL .. queue_name) == 1 then
  redis.call('HINCRBY', FULL .. queue_name, 'claimed', #answer - 1)
end
if number > 0 and #answer > 1 then
  local ids = {}
  for at = 2, #answer do ids[at - 1] = answer[at][1] end
  redis.call('SET', CLAIMS .. worker, ARGV[6] .. ' ' .. queue_name .. ' ' .. whole(now) .. ' ' .. table.concat(ids, ' '),
    'PX', '3600000')
end
-- Who has slots left waits for the next wake-up. Who has none, and leaves jobs behind, wakes the next one.
if #answer <= limit then
  redis.call('ZADD', IDLE .. queue_name, whole(#answer - 1 - limit), worker)
  redis.call('PEXPIRE', IDLE .. queue_name, '3600000')
else
  redis.call('ZREM', IDLE .. queue_name, worker)
  if redis.call('EXISTS', IDLE .. queue_name) == 1
    and redis.call('ZRANGEBYSCORE', queue, '-inf', '(' .. whole(now + 1), 'LIMIT', whole(staying), '1')[1] then wake(queue_name, 1) end
end
if left then wake(queue_name, math.huge) end -- which of them has that task is not known
local next_due = redis.call('ZRANGEBYSCORE', queue, whole(now + 1), '+inf', 'WITHSCORES', 'LIMIT', '0', '1')
if next_due[2] then answer[1] = math.max(0, math.ceil(tonumber(next_due[2]) - now)) end
if held_back > 0 and staying + held_back >= 2000 then answer[1] = 0 end -- there may be more behind them
local promote = seldom and redis.call('ZRANGE', PROMOTE .. queue_name, 0, 0, 'WITHSCORES') or {}
if promote[2] then
  local wait = math.max(0, math.ceil(tonumber(promote[2]) - now))
  if answer[1] < 0 or wait < answer[1] then answer[1] = wait end
end
return answer
