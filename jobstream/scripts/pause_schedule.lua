-- Pause a schedule, or resume it.
-- ARGV  1 schedule   2 `1` to pause it   3 `1`: it is a task's own cron, of which nothing need be known yet
--       4 error of a tick that is withdrawn (JSON)
-- Returns 1, or 0 when there is none.
local schedule, marker, now = ARGV[1], SCHEDULE .. ARGV[1], now_ms()
if ARGV[3] == '' and redis.call('HEXISTS', marker, 'definition') == 0 then return 0 end
if ARGV[2] == '1' then
  local last = redis.call('HMGET', marker, 'tick', 'id', 'queue')
  if last[2] and last[2] ~= '' then
    if tonumber(last[1]) > now then
      withdraw(last[2], last[3], now, ARGV[4])
    else
      redis.call('HSET', marker, 'ran', last[2], 'ran_at', last[1])
    end
    redis.call('HDEL', marker, 'tick', 'id', 'queue')
  end
  redis.call('HSETNX', marker, 'paused', whole(now))
  redis.call('ZREM', SCHEDULES_DUE, schedule)
  -- The workers that know the task renew it; without them nothing is left to be paused.
  if ARGV[3] == '1' then redis.call('PEXPIRE', marker, 30 * 86400000) end
elseif redis.call('HDEL', marker, 'paused') == 1 and ARGV[3] == '' then
  redis.call('ZADD', SCHEDULES_DUE, whole(now), schedule)
end
return 1
