-- Forget a schedule. Its jobs stay, but for the tick that waits for its time.
-- ARGV  1 schedule   2 `If-Match`: the version that it must have, '' for any   3 error of a tick that is withdrawn (JSON)
-- Returns 'deleted'; 'missing'; 'other' when it has another version.
local schedule, marker, now = ARGV[1], SCHEDULE .. ARGV[1], now_ms()
local old = redis.call('HMGET', marker, 'version', 'tick', 'id', 'queue')
if not old[1] then return 'missing' end
if ARGV[2] ~= '' and ARGV[2] ~= old[1] then return 'other' end
if old[3] and tonumber(old[2]) > now then withdraw(old[3], old[4], now, ARGV[3]) end
redis.call('DEL', marker)
redis.call('ZREM', SCHEDULES, schedule)
redis.call('ZREM', SCHEDULES_DUE, schedule)
return 'deleted'
