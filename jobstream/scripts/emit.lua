-- Write what an attempt said: progress (state) and log lines or chunks (events), in order.
-- KEYS  1 the queue's zset (unused: one shape for all writes of an attempt)
-- ARGV  1 id   2 token   3… kind, data, kind, data, …
-- Returns the job's version, or 0 when the attempt no longer holds the job.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local record, now = RECORD .. id, now_ms()
local old = redis.call('HMGET', record, 'version', 'log_bytes')
local version, bytes, progress = tonumber(old[1]) or 0, old[2] or 0, {}
for at = 3, #ARGV, 2 do
  version = version + 1
  bytes = tell(id, event_text(version, ARGV[at], ARGV[at + 1], now), ARGV[at], bytes)
  if ARGV[at] == 'progress' then progress = {'progress', ARGV[at + 1]} end
end
redis.call('HSET', record, 'version', version, 'log_bytes', bytes, unpack(progress))
return version
