-- Prefixed to every script; names of keys.py stand for their strings. Time is Redis's own: never a client's clock.

local LOG_ENTRIES, LOG_BYTES = 5000, 4194304 -- durable events kept per job
local JOURNAL_ENTRIES, JOURNAL_BYTES = 100000, 33554432 -- durable events kept of all jobs, while somebody wants them
local JOURNAL_LOG_LIFE = 660000 -- ms: longer than the journal's own life, which is renewed together with this

local FINAL = {succeeded = true, failed = true, cancelled = true}

local BATCH_LIFE = 34560000000 -- ms: 400 days, longer than a job may wait; from its end on it is the batch's ttl

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A script says the same few numbers again and again, and to write one costs as much as a command; so does what Lua and
-- Redis do with a number that is joined to a string, or given to a command.
local texts = {}
local function whole(number)
  local text = texts[number]
  if not text then
    text = string.format(number % 1 == 0 and '%d' or '%.0f', number) -- the former takes a fifth of the time
    texts[number] = text
  end
  return text
end

-- And the other way round: what a field says, 0 if it is not there.
local numbers = {}
local function as_number(text)
  if not text then return 0 end
  local known = numbers[text]
  if not known then
    known = tonumber(text) or 0
    numbers[text] = known
  end
  return known
end

-- Redis at its `maxmemory` refuses what takes memory in a script, but only until the script has written once (script.c,
-- SCRIPT_WRITE_DIRTY; the same in 6.2): a write that changes nothing lets work that was accepted go on to its end, which
-- frees memory. Submits do not call this: they are refused.
local function even_when_full()
  redis.call('PERSIST', EPOCH)
end

-- Wake so many of the workers that wait for jobs of the queue, those first that have most free slots: not all of a large
-- fleet for each job. Where none waits all are busy, and each looks again when a slot of its own is free. One that has
-- died hears nothing, and another is woken; one that is frozen is found out by the fallback polls of the others.
local function wake(queue_name, count)
  while count > 0 do
    local worker = redis.call('ZPOPMIN', IDLE .. queue_name)[1]
    if not worker then return end
    count = count - redis.call('PUBLISH', CONTROL .. worker, 'claim ' .. queue_name)
  end
end

-- The journal has the events of all jobs in one order, as long as somebody wants it: nobody, mostly. Asked once a script.
local journal
local function journal_is_wanted()
  if journal == nil then journal = redis.call('HGET', JOURNAL, 'generation') end
  return journal
end

-- An entry is `<generation> <seq> <status before> <lengths of id, task, tags and owner> <id><task><tags><owner><event>`:
-- whoever reads it need not know the job, which may be gone by then. `was`: the status that the event found, if it may
-- have changed it. Progress is published, but not kept.
local function note(id, was, event, kept)
  local about = redis.call('HMGET', RECORD .. id, 'status', 'task', 'tags', 'owner')
  local task, tags, owner = about[2] or '', about[3] or '', about[4] or ''
  local seq = redis.call('HINCRBY', JOURNAL, 'seq', 1)
  local entry = table.concat({journal, seq, was or about[1] or '-', #id, #task, #tags, #owner, id .. task .. tags .. owner .. event}, ' ')
  if kept then
    local bytes = redis.call('HINCRBY', JOURNAL, 'bytes', #entry)
    local length = redis.call('RPUSH', JOURNAL_LOG, entry)
    if length == 1 then
      redis.call('PEXPIRE', JOURNAL_LOG, JOURNAL_LOG_LIFE)
      if bytes > #entry then redis.call('HSET', JOURNAL, 'floor', seq - 1) end -- what was there has been evicted
    end
    while length > 1 and (length > JOURNAL_ENTRIES or bytes > JOURNAL_BYTES) do
      local oldest = redis.call('LPOP', JOURNAL_LOG)
      length, bytes = length - 1, bytes - #oldest
      redis.call('HSET', JOURNAL, 'bytes', bytes, 'floor', string.match(oldest, '^%x+ (%d+)'))
    end
  end
  redis.call('PUBLISH', JOURNAL_ENTRY, entry)
end

-- Put an event behind the job's log, and take the oldest out while it has too many, or they are too large together. The
-- newest always stays. `bytes`: the record's `log_bytes`. Returns what that is to be now.
local function keep(id, event, bytes)
  local log = LOG .. id
  local length = redis.call('RPUSH', log, event)
  bytes = (length > 1 and as_number(bytes) or 0) + #event -- of one entry: the first, or the log has been evicted
  while length > 1 and (length > LOG_ENTRIES or bytes > LOG_BYTES) do
    length, bytes = length - 1, bytes - #redis.call('LPOP', log)
  end
  return whole(bytes)
end

-- `version`: the job's, already counted up. Jobs that begin or end together mostly say the same.
local last_version, last_kind, last_data, last_now, last_text
local function event_text(version, kind, data, now)
  if version ~= last_version or kind ~= last_kind or data ~= last_data or now ~= last_now then
    last_version, last_kind, last_data, last_now = version, kind, data, now
    last_text = whole(version) .. ' ' .. kind .. ' ' .. whole(now) .. ' ' .. data
  end
  return last_text
end

-- An event of the job: durable ones go to the log, all of them ring the bell. `bytes`: the record's `log_bytes`; `was`:
-- the status before, when the event may have changed that. Returns what `log_bytes` is to be now: it and the version are
-- the caller's to write, who writes the record anyhow.
local function tell(id, event, kind, bytes, was)
  local durable = kind ~= 'progress'
  if durable then bytes = keep(id, event, bytes) end
  redis.call('PUBLISH', EVENTS .. id, event)
  if journal_is_wanted() then note(id, was, event, durable) end
  return bytes
end

local function status_data(status, attempt, more)
  return '{"status":"' .. status .. '","attempt":' .. (attempt or '0') .. (more or '') .. '}'
end

-- What has ended in this script and has successors, with the status in which it did: after.lua tells them.
local ended_for_others = {}

-- A job has children, of which so many have ended: that is its progress, unless it says one of its own.
local function roll_up(id, ended, children, now)
  local record = RECORD .. id
  local about = redis.call('HMGET', record, 'status', 'version', 'progress', 'rolled_up')
  if not about[1] or FINAL[about[1]] then return end
  local message = 'null'
  if about[3] and about[3] ~= about[4] then
    local own = cjson.decode(about[3])
    if (own.current or cjson.null) ~= cjson.null or (own.total or cjson.null) ~= cjson.null then return end
    if (own.message or cjson.null) ~= cjson.null then message = cjson.encode(own.message) end
  elseif about[3] then
    message = string.match(about[3], '"message":(.*),"eta_s"')
  end
  local progress = string.format('{"current":%d,"total":%d,"percent":%.1f,"message":%s,"eta_s":null,"items":[]}', ended, children,
    math.floor(ended * 1000 / children) / 10, message)
  redis.call('HSET', record, 'progress', progress, 'rolled_up', progress, 'version', about[2] + 1)
  tell(id, event_text(about[2] + 1, 'progress', progress, now), 'progress')
end

-- A batch's jobs have moved so between statuses (status → how many more are in it): the counts, and what follows from
-- them. Its record is like a job's, with a version, a log and a bell, so that it is followed like one; it is in no index.
local function recount(batch, moved, now)
  local record, names = RECORD .. batch, {'scheduled', 'queued', 'running', 'retrying', 'cancelling', 'succeeded', 'failed', 'cancelled'}
  local about = redis.call('HMGET', record, 'status', 'jobs', 'ttl', 'version', 'log_bytes', 'successors', 'of')
  local status, jobs, bytes = about[1], tonumber(about[2]), tonumber(about[5]) or 0
  if not status then return end -- it has expired
  for name, more in pairs(moved) do redis.call('HINCRBY', record, 'n_' .. name, more) end
  local counts, said = {}, {}
  for at, count in ipairs(redis.call('HMGET', record, 'n_scheduled', 'n_queued', 'n_running', 'n_retrying', 'n_cancelling',
    'n_succeeded', 'n_failed', 'n_cancelled')) do
    counts[names[at]] = tonumber(count) or 0
    said[at] = '"' .. names[at] .. '":' .. (count or 0)
  end
  local ended, is = counts.succeeded + counts.failed + counts.cancelled, status
  if ended >= jobs then
    is = counts.failed > 0 and 'failed' or counts.cancelled > 0 and 'cancelled' or 'succeeded'
  elseif FINAL[status] or (status == 'queued' and (ended > 0 or counts.running > 0)) then
    is = 'running'
  end
  local kind, data = 'progress', nil
  if FINAL[is] then
    kind, data = 'done', is
  elseif is ~= status then
    kind, data = 'status', status_data(is, 0)
  else
    data = string.format('{"current":%d,"total":%d,"percent":%.1f,"message":null,"eta_s":null,"items":[],"counts":{%s}}',
      ended, jobs, math.floor(ended * 1000 / jobs) / 10, table.concat(said, ','))
  end
  local version = (tonumber(about[4]) or 0) + 1
  local event = event_text(version, kind, data, now)
  if kind ~= 'progress' then bytes = keep(batch, event, bytes) end
  redis.call('HSET', record, 'status', is, 'version', version, 'log_bytes', bytes)
  if FINAL[is] then
    local deadline = now + tonumber(about[3])
    redis.call('HSET', record, 'finished_at', whole(now), 'expires_at', whole(deadline))
    redis.call('PEXPIREAT', record, whole(deadline))
    redis.call('PEXPIREAT', LOG .. batch, whole(deadline))
    if about[6] then ended_for_others[#ended_for_others + 1] = {batch, is} end
  elseif FINAL[status] then -- one of its jobs is run again
    redis.call('HDEL', record, 'finished_at', 'expires_at')
    redis.call('PEXPIRE', record, BATCH_LIFE)
    redis.call('PEXPIRE', LOG .. batch, BATCH_LIFE)
  end
  redis.call('PUBLISH', EVENTS .. batch, event)
  if about[7] then roll_up(about[7], ended, jobs, now) end
end

-- Batches whose jobs this script has moved: each is told once, by whoever moves jobs, behind the last of them.
local moved_in = {}
local function move_in_batch(batch, old, new)
  local moved = moved_in[batch] or {}
  moved_in[batch] = moved
  if old then moved[old] = (moved[old] or 0) - 1 end
  moved[new] = (moved[new] or 0) + 1
end

local function tell_batches()
  for batch, moved in pairs(moved_in) do recount(batch, moved, now_ms()) end
  moved_in = {}
end

-- What many jobs do to the same zset is gathered: a command with a hundred members costs a fraction of a hundred
-- commands. Whoever gathers does what was gathered before it looks at such a zset, and before it returns.
local gathered = {ZADD = {}, ZREM = {}}
local function gather(command, zset, first, second)
  local words = gathered[command][zset]
  if not words then
    words = {count = 0}
    gathered[command][zset] = words
  end
  local count = words.count + 1
  words[count] = first
  if second then
    count = count + 1
    words[count] = second
  end
  words.count = count
  if count >= 1000 then
    redis.call(command, zset, unpack(words))
    gathered[command][zset] = nil
  end
end

local function do_gathered()
  for command, zsets in pairs(gathered) do
    for zset, words in pairs(zsets) do redis.call(command, zset, unpack(words)) end
    gathered[command] = {}
  end
  tell_batches()
end

-- Move the job from one status's index to another's; the record's field is the caller's to set. `act` is `redis.call` or
-- `gather`; `batch`: the one that it belongs to, if any. Then it is for the caller to see that it is told.
local function move(id, old, new, created_at, owner, act, batch)
  if old == new then return end
  if batch then move_in_batch(batch, old, new) end
  if old then act('ZREM', INDEX_STATUS .. old, id) end
  act('ZADD', INDEX_STATUS .. new, created_at, id)
  if not owner then return end
  if old then act('ZREM', INDEX_OWNED .. old .. ' ' .. owner, id) end
  act('ZADD', INDEX_OWNED .. new .. ' ' .. owner, created_at, id)
end

-- A change of status alone: field, index, event.
local function set_status(id, status, now, more)
  local record = RECORD .. id
  local old = redis.call('HMGET', record, 'status', 'created_at', 'attempt', 'owner', 'version', 'log_bytes', 'batch')
  local version = as_number(old[5]) + 1
  local bytes = tell(id, event_text(version, 'status', status_data(status, old[3], more), now), 'status', old[6], old[1])
  redis.call('HSET', record, 'status', status, 'version', whole(version), 'log_bytes', bytes)
  move(id, old[1], status, old[2], old[4], redis.call, old[7])
  if old[7] then tell_batches() end
end

-- What the sweep must know when the record itself has expired: `id task tag tag… =owner ~word~word… !batch`. No tag begins
-- with `=`, `~` or `!`, no word has a `~`. The batch is there only as long as the job has not ended.
local function expiry_member(id, task, tags, owner, words, batch)
  local member = id .. ' ' .. (task or '')
  if tags and tags ~= '' then member = member .. ' ' .. tags end
  if owner then member = member .. ' =' .. owner end
  if words and words ~= '' then member = member .. ' ~' .. string.gsub(words, ' ', '~') end
  if batch then member = member .. ' !' .. batch end
  return member
end

-- The job's members of INDEX_WORDS: those of one word stand together there, the oldest job first.
local function word_members(id, words, created_at)
  local members, behind = {}, string.format(' %013.0f ', tonumber(created_at)) .. id
  for word in string.gmatch(words, '[^ ~]+') do members[#members + 1] = word .. behind end
  return members
end

local function stored_expiry_member(id)
  local record = redis.call('HMGET', RECORD .. id, 'task', 'tags', 'owner', 'words', 'batch', 'status')
  return expiry_member(id, record[1], record[2], record[3], record[4], not FINAL[record[6]] and record[5])
end

local function keep_until(id, deadline, member)
  redis.call('PEXPIREAT', RECORD .. id, whole(deadline))
  redis.call('PEXPIREAT', LOG .. id, whole(deadline))
  redis.call('ZADD', EXPIRY, whole(deadline), member or stored_expiry_member(id))
end

-- Returns the status in whose index it was.
local function leave_indexes(id, member)
  local created_at = redis.call('ZSCORE', INDEX, id)
  redis.call('ZREM', INDEX, id)
  local position, owner = 0, nil
  for word in string.gmatch(string.sub(member, #id + 2), '[^ ]+') do
    local sign = position > 0 and string.sub(word, 1, 1)
    if sign == '=' then
      owner = string.sub(word, 2)
      redis.call('ZREM', INDEX_OWNER .. owner, id)
    elseif sign == '~' then
      local members = word_members(id, word, created_at or 0)
      redis.call('ZREM', INDEX_WORDS, unpack(members))
      if owner then redis.call('ZREM', INDEX_WORDS .. owner, unpack(members)) end
    elseif sign ~= '!' then
      redis.call('ZREM', (position == 0 and INDEX_TASK or INDEX_TAG) .. word, id)
    end
    position = position + 1
  end
  local was
  for _, status in ipairs({'scheduled', 'queued', 'running', 'retrying', 'cancelling', 'succeeded', 'failed', 'cancelled'}) do
    if redis.call('ZREM', INDEX_STATUS .. status, id) == 1 then was = status end
    if owner then redis.call('ZREM', INDEX_OWNED .. status .. ' ' .. owner, id) end
  end
  redis.call('ZREM', EXPIRY, member)
  return was
end

-- Remove all that the job owns; a tombstone says for a day that it was there, to those who were allowed to see it.
local function forget(id)
  local last = redis.call('HMGET', RECORD .. id, 'owner', 'version', 'status')
  local owner = last[1]
  if journal_is_wanted() then
    note(id, nil, (last[2] or 0) .. ' gone ' .. whole(now_ms()) .. ' {"status":"' .. (last[3] or '') .. '"}', true)
  end
  leave_indexes(id, stored_expiry_member(id))
  redis.call('DEL', RECORD .. id, LOG .. id, ARQ_JOB .. id, ARQ_RESULT .. id, ARQ_RETRY .. id, ARQ_IN_PROGRESS .. id)
  redis.call('SET', TOMBSTONE .. id, owner and '=' .. owner or '1', 'PX', 86400000)
end

local function queue_key(name)
  return name == 'default' and ARQ_QUEUE or ARQ_QUEUE .. ':' .. name
end

-- Jobs of a queue that workers without their task have left to others.
local function left_key(queue_name, task)
  return LEFT .. queue_name .. ':' .. task
end

-- The owner gets behind all others that are held back, unless it stands there.
local function stand_behind(held_back, least, owner)
  local last = redis.call('ZREVRANGE', held_back, 0, 0, 'WITHSCORES')
  redis.call('ZADD', held_back, 'NX', string.format('%.3f', math.max(tonumber(least), tonumber(last[2] or 0) + 0.001)), owner)
end

-- Up to `count` jobs that were held back get the places in their queues back that they had. Those that are gone, or run
-- already in a stock worker, do not count. In `running` each keeps its right to run for 2 s: else newcomers take it.
local function unpark(held_back, count, running)
  while count > 0 do
    local parked = redis.call('ZPOPMIN', held_back)
    local id, place = parked[1], parked[2]
    if not id then return end
    if string.sub(id, 1, 1) == '=' then -- an owner's turn
      local of_owner = held_back .. ' ' .. string.sub(id, 2)
      local first = redis.call('ZPOPMIN', of_owner)
      if first[1] then
        if redis.call('EXISTS', of_owner) == 1 then stand_behind(held_back, parked[2], id) end
        id, place = first[1], first[2]
      end
    end
    local queue = redis.call('HGET', RECORD .. id, 'queue') or ''
    local moved = redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 0
      and redis.call('ZADD', queue_key(queue), 'XX', 'CH', place, id) == 1
    if moved then
      if running then
        redis.call('ZADD', running, 'NX', whole(now_ms() + 2000), id)
        redis.call('PEXPIRE', running, 86400000)
      end
      wake(queue, 1)
      count = count - 1
    end
  end
end

-- Whether there is such a key; asked once a script, for keys that come and go in others.
local there = {}
local function exists(key)
  if there[key] == nil then there[key] = redis.call('EXISTS', key) == 1 end
  return there[key]
end

-- One job of the task less runs: one that was held back for it may go. The owner's next one is due already.
local function leave_running(id, task, owner, comes_back)
  if owner and exists(RUNNING .. '=' .. owner) and redis.call('ZREM', RUNNING .. '=' .. owner, id) == 1 then
    wake(redis.call('HGET', RECORD .. id, 'queue') or '', 1)
  end
  if task and exists(RUNNING .. task) and redis.call('ZREM', RUNNING .. task, id) == 1 then
    unpark(PARKED .. task, 1, not comes_back and RUNNING .. task)
  end
end

-- All of a record that its watchers may see, for the last event of a job whose record does not outlive it.
local function last_words(flat)
  local fields = {}
  for at = 1, #flat, 2 do
    if flat[at] ~= 'payload' then fields[flat[at]] = flat[at + 1] end
  end
  return ' ' .. cjson.encode(fields)
end

-- Somebody is to be told of this end: the record as it is now waits in the mailbag for a worker that makes deliveries of
-- it. A large result stays where it is.
local function put_in_mailbag(id)
  local flat, fields = redis.call('HGETALL', RECORD .. id), {}
  for at = 1, #flat, 2 do
    local name, value = flat[at], flat[at + 1]
    if name == 'result' and #value > 20000 then
      fields.result_omitted = '1'
    elseif name ~= 'payload' and name ~= 'words' then
      fields[name] = value
    end
  end
  redis.call('RPUSH', MAILBAG, cjson.encode(fields))
  wake('webhooks', 1)
end

-- The end of one of many jobs: record, indexes, arq's keys and the last event together. More fields of the record may
-- follow. Some of it is gathered. Returns the record when it is purged with that.
local function finish_one(id, queue, status, now, ...)
  local record = RECORD .. id
  local old = redis.call('HMGET', record, 'status', 'created_at', 'ttl', 'purge', 'task', 'tags', 'version', 'attempt',
    'owner', 'words', 'callback_url', 'log_bytes', 'batch', 'successors')
  local was, purge, task, owner, batch = old[1], old[4], old[5], old[9], old[13]
  if old[14] then ended_for_others[#ended_for_others + 1] = {id, status} end
  local deadline = whole(now + as_number(old[3] or '86400000'))
  local version, bytes = as_number(old[7]) + 1, '0'
  if not purge then bytes = tell(id, event_text(version, 'done', status, now), 'done', old[12], was) end
  redis.call('HSET', record, 'status', status, 'version', whole(version), 'log_bytes', bytes, 'finished_at', whole(now),
    'expires_at', deadline, 'token', '', ...)
  if was ~= 'running' and was ~= 'cancelling' then redis.call('HDEL', record, 'run_at') end -- a claim has done so
  if status == 'succeeded' then
    if old[8] ~= '1' then redis.call('HDEL', record, 'error') end -- of an earlier attempt
  else -- the payload stays with the record, so that the job can be run again
    local payload = redis.call('GET', ARQ_JOB .. id)
    if payload then redis.call('HSET', record, 'payload', payload) end
  end
  move(id, was, status, old[2], owner, gather, batch)
  if batch then gather('ZREM', EXPIRY, expiry_member(id, task, old[6], owner, old[10], batch)) end
  redis.call('DEL', ARQ_JOB .. id, ARQ_IN_PROGRESS .. id, ARQ_RETRY .. id)
  gather('ZREM', queue, id)
  if exists(ARQ_ABORT) then gather('ZREM', ARQ_ABORT, id) end
  leave_running(id, task, owner)
  if (old[11] or exists(WEBHOOKS_IN_USE .. (owner or ''))) and task ~= 'webhook-delivery' then put_in_mailbag(id) end
  if not purge then
    redis.call('PEXPIREAT', record, deadline)
    redis.call('PEXPIREAT', LOG .. id, deadline)
    gather('ZADD', EXPIRY, deadline, expiry_member(id, task, old[6], owner, old[10]))
    return
  end
  local flat = redis.call('HGETALL', record)
  tell(id, event_text(version, 'done', status .. last_words(flat), now), 'done', 0, was)
  do_gathered()
  forget(id)
  return flat
end

-- The end of a job that is ended alone.
local function finish(...)
  local purged = finish_one(...)
  do_gathered()
  return purged
end

-- True when the attempt that speaks still holds the job: the fence before every write of an attempt. A lease that ran
-- out (Redis was away) is still its own as long as nobody has taken the job over: a claim puts its own token there.
-- `holder`: what ARQ_IN_PROGRESS has, if the caller has read it.
local function holds(id, token, holder)
  if holder == nil then holder = redis.call('GET', ARQ_IN_PROGRESS .. id) end
  if holder then return holder == token end
  -- Without a payload the job has ended: a stock worker took it over, and does not write our record.
  return redis.call('HGET', RECORD .. id, 'token') == token and redis.call('EXISTS', ARQ_JOB .. id) == 1
end

-- Every claim and renewal makes contact. When nobody has for a while, Redis was away or frozen, and leases ran out that
-- could not be renewed: their holders get one lease to come back before their jobs are taken from them.
local function after_outage(now, lease)
  local contact = tonumber(redis.call('SET', CONTACT, whole(now), 'PX', '3600000', 'GET') or now)
  if now - contact > 2000 then redis.call('SET', GRACE, '1', 'PX', whole(lease)) end
  return redis.call('EXISTS', GRACE) == 1
end

-- Where a job stands in its queue: by the time it is due, a step of priority counts as much as eleven days.
local function score(due, priority)
  return due - (tonumber(priority) or 0) * 1e9
end

-- Give a job back to its queue unfinished, at its old place; the attempt that holds it does not count.
local function give_back(id, queue_name, now)
  local record = RECORD .. id
  local attempt = redis.call('DECR', ARQ_RETRY .. id)
  redis.call('DEL', ARQ_IN_PROGRESS .. id)
  local old = redis.call('HMGET', record, 'created_at', 'priority', 'task', 'owner')
  redis.call('ZADD', queue_key(queue_name), whole(score(tonumber(old[1]), old[2])), id)
  redis.call('HSET', record, 'attempt', attempt)
  redis.call('HDEL', record, 'worker', 'token', 'started_at', 'progress')
  leave_running(id, old[3], old[4], true)
  set_status(id, 'queued', now)
  wake(queue_name, 1)
end
