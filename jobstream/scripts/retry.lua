-- End an attempt that failed, and let the job wait for its next one.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 wait (ms)   4 error (JSON)   5 queue's name   6 how long a record lives at least (ms)
-- Returns 1, or 0 when the attempt no longer holds the job, or when the job was told to stop meanwhile.
even_when_full()
local id = ARGV[1]

-- Milliseconds since 1970 in RFC 3339. Years are counted from March on, so that a leap day is the last of its year.
local function rfc3339(ms)
  local day = math.floor(ms / 86400000) + 719468 -- since 1 March of the year 0
  local rest = ms % 86400000
  local era = math.floor(day / 146097) -- 400 years
  day = day % 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  day = day - 365 * year - math.floor(year / 4) + math.floor(year / 100)
  local month = math.floor((5 * day + 2) / 153) -- 0: March
  day = day - math.floor((153 * month + 2) / 5) + 1
  if month >= 10 then year = year + 1 end
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', era * 400 + year, (month + 2) % 12 + 1, day,
    math.floor(rest / 3600000), math.floor(rest / 60000) % 60, math.floor(rest / 1000) % 60, rest % 1000)
end

if not holds(id, ARGV[2]) then return 0 end
local record, now = RECORD .. id, now_ms()
local due = now + tonumber(ARGV[3])
local old = redis.call('HMGET', record, 'errors', 'task', 'status', 'priority', 'owner')
if old[3] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then return 0 end
redis.call('HSET', record, 'error', ARGV[4], 'errors', (old[1] and old[1] .. ',' or '') .. ARGV[4], 'run_at', whole(due))
redis.call('HDEL', record, 'token', 'worker')
redis.call('DEL', ARQ_IN_PROGRESS .. id)
redis.call('ZADD', KEYS[1], whole(due), id)
if old[4] and not old[5] then redis.call('ZADD', PROMOTE .. ARGV[5], whole(due), id) end
set_status(id, 'retrying', now, ',"run_at":"' .. rfc3339(due) .. '","error":' .. ARGV[4])
leave_running(id, old[2], old[5])
local live = due + tonumber(ARGV[6])
if now + redis.call('PTTL', record) < live then
  keep_until(id, live)
  redis.call('PEXPIREAT', ARQ_JOB .. id, whole(live))
  redis.call('PEXPIREAT', ARQ_RETRY .. id, whole(live))
end
wake(ARGV[5], 1)
return 1
