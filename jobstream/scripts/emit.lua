-- Write what an attempt said: progress (state) and log lines or chunks (events), in order.
-- KEYS  1 the queue's zset (unused: one shape for all writes of an attempt)
-- ARGV  1 id   2 token   3… kind, data, kind, data, …
-- Returns the job's version, or 0 when the attempt no longer holds the job.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local now, version = now_ms(), 0
for at = 3, #ARGV, 2 do
  if ARGV[at] == 'progress' then redis.call('HSET', RECORD .. id, 'progress', ARGV[at + 1]) end
  version = say(id, ARGV[at], ARGV[at + 1], now)
end
return version
