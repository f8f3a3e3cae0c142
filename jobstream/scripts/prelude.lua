-- Prefixed to every script, after the key names of keys.py. Time is Redis's own: never a client's clock.

local LOG_ENTRIES = 5000 -- durable events kept per job, about

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- One more version of the job; durable events go to the log, all of them ring the bell.
local function say(id, kind, data, now)
  local version = redis.call('HINCRBY', RECORD .. id, 'version', 1)
  if kind ~= 'progress' then
    redis.call('XADD', LOG .. id, 'MAXLEN', '~', LOG_ENTRIES, version .. '-0', 'e', kind, 't', whole(now), 'd', data)
  end
  redis.call('PUBLISH', EVENTS .. id, version .. ' ' .. kind .. ' ' .. whole(now) .. ' ' .. data)
  return version
end

local function say_status(id, status, attempt, now, more)
  return say(id, 'status', '{"status":"' .. status .. '","attempt":' .. (attempt or 0) .. (more or '') .. '}', now)
end

-- Change the status field and its index together.
local function set_status(id, status)
  local old = redis.call('HGET', RECORD .. id, 'status')
  if old then redis.call('ZREM', INDEX_STATUS .. old, id) end
  redis.call('HSET', RECORD .. id, 'status', status)
  redis.call('ZADD', INDEX_STATUS .. status, redis.call('HGET', RECORD .. id, 'created_at'), id)
end

-- What the sweep must know when the record itself has expired: `id task tag tag…`.
local function expiry_member(id)
  local record = redis.call('HMGET', RECORD .. id, 'task', 'tags')
  local member = id .. ' ' .. (record[1] or '')
  if record[2] and record[2] ~= '' then member = member .. ' ' .. record[2] end
  return member
end

local function keep_until(id, deadline)
  redis.call('PEXPIREAT', RECORD .. id, whole(deadline))
  redis.call('PEXPIREAT', LOG .. id, whole(deadline))
  redis.call('ZADD', EXPIRY, whole(deadline), expiry_member(id))
end

local function leave_indexes(id, member)
  redis.call('ZREM', INDEX, id)
  local position = 0
  for word in string.gmatch(string.sub(member, #id + 2), '[^ ]+') do
    redis.call('ZREM', (position == 0 and INDEX_TASK or INDEX_TAG) .. word, id)
    position = position + 1
  end
  for _, status in ipairs({'scheduled', 'queued', 'running', 'retrying', 'cancelling', 'succeeded', 'failed', 'cancelled'}) do
    redis.call('ZREM', INDEX_STATUS .. status, id)
  end
  redis.call('ZREM', EXPIRY, member)
end

-- Remove all that the job owns; a tombstone says for a day that it was there.
local function forget(id)
  leave_indexes(id, expiry_member(id))
  redis.call('DEL', RECORD .. id, LOG .. id, ARQ_JOB .. id, ARQ_RESULT .. id, ARQ_RETRY .. id, ARQ_IN_PROGRESS .. id)
  redis.call('SET', TOMBSTONE .. id, '1', 'PX', 86400000)
end

-- One job of the task less runs: one that was held back for it may go.
local function leave_running(id, queue, task)
  if not task or redis.call('ZREM', RUNNING .. task, id) == 0 then return end
  local parked = redis.call('ZPOPMIN', PARKED .. task)
  if parked[1] then
    redis.call('ZADD', queue, 'XX', parked[2], parked[1])
    redis.call('PUBLISH', WAKE .. (redis.call('HGET', RECORD .. parked[1], 'queue') or ''), parked[1])
  end
end

-- The end of a job: record, arq's keys and the last event together.
local function finish(id, queue, status, now)
  local record = RECORD .. id
  if status ~= 'succeeded' then -- the payload stays with the record, so that the job can be run again
    local payload = redis.call('GET', ARQ_JOB .. id)
    if payload then redis.call('HSET', record, 'payload', payload) end
  end
  local fields = redis.call('HMGET', record, 'ttl', 'purge', 'task')
  local deadline = now + tonumber(fields[1] or 86400000)
  set_status(id, status)
  redis.call('HSET', record, 'finished_at', whole(now), 'expires_at', whole(deadline))
  redis.call('HDEL', record, 'run_at', 'token')
  redis.call('DEL', ARQ_JOB .. id, ARQ_IN_PROGRESS .. id, ARQ_RETRY .. id)
  redis.call('ZREM', queue, id)
  redis.call('ZREM', ARQ_ABORT, id)
  leave_running(id, queue, fields[3])
  say(id, 'done', status, now)
  if fields[2] then forget(id) else keep_until(id, deadline) end
end

-- True when the attempt that speaks still holds the job: the fence before every write of an attempt. A lease that ran
-- out (Redis was away) is still its own as long as nobody has taken the job over: a claim puts its own token there.
local function holds(id, token)
  local holder = redis.call('GET', ARQ_IN_PROGRESS .. id)
  return holder == token or (not holder and redis.call('HGET', RECORD .. id, 'token') == token)
end

-- Every claim and renewal makes contact. When nobody has for a while, Redis was away or frozen, and leases ran out that
-- could not be renewed: their holders get one lease to come back before their jobs are taken from them.
local function after_outage(now, lease)
  local contact = tonumber(redis.call('GET', CONTACT) or now)
  if now - contact > 2000 then redis.call('SET', GRACE, '1', 'PX', whole(lease)) end
  redis.call('SET', CONTACT, whole(now), 'PX', 3600000)
  return redis.call('EXISTS', GRACE) == 1
end

local FINAL = {succeeded = true, failed = true, cancelled = true}

-- Where a job stands in its queue: by the time it is due, a step of priority counts as much as eleven days.
local function score(due, priority)
  return due - (tonumber(priority) or 0) * 1e9
end
