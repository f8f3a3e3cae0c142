-- Queue the next tick of a schedule, once in the whole fleet, unless the one before still waits for a worker.
-- KEYS  1 the queue's zset
-- ARGV  1 schedule   2 tick (ms)   3 cron: expression and time zone   4 version of the definition, '' for a task's own cron
--       5 since when the worker knows the task's cron (ms)   6 error of a tick that is withdrawn (JSON)
--       then of the tick's job: 7 id   8 queue's name   9 task   10 payload   11 how long it may wait (ms)   12 tags
--       13… more fields of the record: name, value, …
--       Without a cron (3 is ''): the task has none any more, and what was queued for the old one is withdrawn.
-- Returns 'queued'; 'kept' when there was nothing to do; 'past' when the tick is not ahead any more; 'waits' when the one
-- before has not begun: after an outage it is the only one that is late.
local schedule, tick, cron, version, since, why, id = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local marker, now = SCHEDULE .. schedule, now_ms()
local last = redis.call('HMGET', marker, 'tick', 'cron', 'since', 'id', 'queue', 'version', 'paused')
local last_tick, last_cron, last_since, paused = tonumber(last[1] or 0), last[2], tonumber(last[3] or 0), last[7]
local waits = last_tick > now
local hour, day = 3600000, 86400000
local stored = version ~= ''

local function due(at)
  if stored then redis.call('ZADD', SCHEDULES_DUE, whole(at), schedule) end
end

if stored then
  if last[6] ~= version or paused then return 'kept' end -- deleted, changed or paused since it was read
else
  -- While workers with an old and a new cron run side by side, those that began last speak for the task, unless they have
  -- been silent since half a minute after their tick.
  if last_cron and last_cron ~= cron and since <= last_since and now - last_tick < 30000 then return 'kept' end
  if cron == '' then
    if not last_cron or last_cron == '' then return 'kept' end
    if waits then withdraw(last[4], last[5], now, why) end
    redis.call('HSET', marker, 'tick', whole(now + hour), 'cron', '', 'since', whole(since), 'id', '', 'queue', '')
    redis.call('PEXPIREAT', marker, whole(now + hour)) -- workers with the old cron are to be silent meanwhile
    return 'kept'
  end
  if paused then
    redis.call('HSET', marker, 'cron', cron, 'since', whole(math.max(since, last_since)))
    redis.call('PEXPIRE', marker, 30 * day)
    return 'kept'
  end
end

if tick <= now then
  due(now)
  return 'past'
end
if waits then
  -- More than a day between the two: Redis's clock was wrong when that one was queued.
  if (last_cron == cron or last_tick == tick) and last_tick - tick <= day then
    redis.call('HSET', marker, 'cron', cron, 'since', whole(math.max(since, last_since)))
    due(last_tick + 20)
    return 'kept'
  end
  withdraw(last[4], last[5], now, why)
elseif last_tick > 0 and last[4] ~= '' then
  local status = redis.call('HGET', RECORD .. last[4], 'status')
  -- A stock worker that runs it, or has, writes no record.
  local untouched = redis.call('EXISTS', ARQ_JOB .. last[4]) == 1 and redis.call('EXISTS', ARQ_IN_PROGRESS .. last[4]) == 0
  if untouched and (status == 'scheduled' or status == 'queued') then return 'waits' end
  redis.call('HSET', marker, 'ran', last[4], 'ran_at', whole(last_tick))
end
local old = redis.call('HMGET', RECORD .. id, 'status', 'withdrawn')
if old[1] == 'cancelled' and old[2] then
  forget(id)
  redis.call('DEL', TOMBSTONE .. id)
end
if redis.call('EXISTS', RECORD .. id, ARQ_JOB .. id, ARQ_RESULT .. id) == 0 then
  local function add(zset, score, member) redis.call('ZADD', zset, score, member) end
  local function enter(...) turns().enter(...) end
  store(now, add, enter, KEYS[1], id, ARGV[8], ARGV[9], ARGV[10], 0, whole(tick), ARGV[11], ARGV[12], 13, #ARGV)
  wake(ARGV[8], 1)
end
redis.call('HSET', marker, 'tick', whole(tick), 'cron', cron, 'since', whole(since), 'id', id, 'queue', KEYS[1])
if not stored then redis.call('PEXPIREAT', marker, whole(tick + 2 * day)) end
due(tick + 20)
return 'queued'
