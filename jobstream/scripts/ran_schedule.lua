-- Note a run of a schedule that somebody asked for.
-- ARGV  1 schedule   2 `1`: it is a task's own cron   3 id of the job   4 when (ms)
local marker = SCHEDULE .. ARGV[1]
if ARGV[2] == '' and redis.call('HEXISTS', marker, 'definition') == 0 then return 0 end
redis.call('HSET', marker, 'ran', ARGV[3], 'ran_at', ARGV[4])
if ARGV[2] == '1' and redis.call('PTTL', marker) < 0 then redis.call('PEXPIRE', marker, 2 * 86400000) end
return 1
