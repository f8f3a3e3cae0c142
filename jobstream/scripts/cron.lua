-- Queue the next tick of a task's cron, once in the whole fleet; `submit` is submit.lua.
-- KEYS  1 the queue's zset
-- ARGV  those of submit, then: the tick (ms), the cron's expression and time zone, since when the worker knows it (ms),
--       error of a tick that is withdrawn (JSON).
--       Without a cron (expression ''): only 3 (task) is looked at, and what was queued for an old one is withdrawn.
-- Returns 'queued'; 'kept' when there was nothing to do; 'past' when the tick is not ahead any more.
local withdrawal = table.remove(ARGV)
local since = tonumber(table.remove(ARGV))
local cron = table.remove(ARGV)
local tick = tonumber(table.remove(ARGV))
local id, task = ARGV[1], ARGV[3]
local marker, now = CRON .. task, now_ms()
local last = redis.call('HMGET', marker, 'tick', 'cron', 'since', 'id', 'queue')
local last_tick, last_cron, last_since = tonumber(last[1] or 0), last[2], tonumber(last[3] or 0)
local waits = last_tick > now
local hour, day = 3600000, 86400000

local function mark(at, expires)
  redis.call('HSET', marker, 'tick', whole(at), 'cron', cron, 'since', whole(since), 'id', id, 'queue', KEYS[1] or '')
  redis.call('PEXPIREAT', marker, whole(expires))
end

-- A tick that was queued and will not come to pass. It may be wanted again: when an old schedule comes back.
local function withdraw()
  local record = RECORD .. last[4]
  local status = redis.call('HGET', record, 'status')
  if status ~= 'scheduled' and status ~= 'queued' then return end
  if redis.call('EXISTS', ARQ_IN_PROGRESS .. last[4]) == 1 then return end -- a stock worker has begun it
  finish(last[4], last[5], 'cancelled', now, 'error', withdrawal, 'withdrawn', '1')
end

-- While workers with an old and a new schedule run side by side, those that began last speak for the task, unless they
-- have been silent since half a minute after their tick.
if last_cron and last_cron ~= cron and since <= last_since and now - last_tick < 30000 then return 'kept' end

if cron == '' then
  if not last_cron or last_cron == '' then return 'kept' end
  if waits then withdraw() end
  id = ''
  mark(now + hour, now + hour) -- workers with the old schedule are to be silent meanwhile
  return 'kept'
end

if tick <= now then return 'past' end
if waits then
  if last_cron == cron or last_tick == tick then
    if last_tick - tick <= day then
      redis.call('HSET', marker, 'cron', cron, 'since', whole(math.max(since, last_since)))
      return 'kept'
    end
    -- More than a day between the two: Redis's clock was wrong when that one was queued.
  end
  withdraw()
end
local old = redis.call('HMGET', RECORD .. id, 'status', 'withdrawn')
if old[1] == 'cancelled' and old[2] then
  forget(id)
  redis.call('DEL', TOMBSTONE .. id)
end
submit()
mark(tick, tick + 2 * day)
return 'queued'
