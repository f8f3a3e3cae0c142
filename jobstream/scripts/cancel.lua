-- Stop a job: one that waits ends at once, one that runs is told so through its worker; `stop` is stop.lua.
-- ARGV  1 id   2 `1` to purge it once it has ended   3 error of one that is cancelled at once (JSON)
--       4 the only status in which to stop it, '': in any
-- Returns {} when there is no record, {'other', record} when it has another status, {'done', record} when it had ended, {'cancelled', record} when it waited,
-- {'cancelling', record} when it runs. A purged record is returned as it was.
even_when_full()
local id, purge = ARGV[1], ARGV[2] == '1'
local verdict, stored = stop(id, purge, ARGV[3], ARGV[4])
if not verdict then return {} end
stored = stored or redis.call('HGETALL', RECORD .. id)
if ended_for_others[1] then after().settle(now_ms()) end
if purge and verdict == 'done' then forget(id) end
return {verdict, stored}
