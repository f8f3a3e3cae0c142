-- Make a schedule, or give one another definition.
-- ARGV  1 schedule   2 behind its owner's last one   3 how many the owner may have   4 `If-Match`: the version that it
--       must have, `*` for any, '' when it need not be there   5 `1`: it must not be there   6 error of a tick that is withdrawn (JSON)
--       7 definition   8 cron: expression and time zone   9 its id in the ids of its jobs   10… more fields: name, value, …
-- Returns {'made' | 'changed' | 'same', version}; {'full'} when the owner has so many; {'other'} when it is not as it must be.
local schedule, marker, now = ARGV[1], SCHEDULE .. ARGV[1], now_ms()
local old = redis.call('HMGET', marker, 'version', 'definition', 'tick', 'id', 'queue', 'paused')
local version = old[1]
if ARGV[4] ~= '' and (not version or (ARGV[4] ~= '*' and ARGV[4] ~= version)) then return {'other'} end
if ARGV[5] == '1' and version then return {'other'} end
if not version then
  local first = '[' .. string.match(schedule, '^[^ ]* ')
  if redis.call('ZLEXCOUNT', SCHEDULES, first, ARGV[2]) >= tonumber(ARGV[3]) then return {'full'} end
  redis.call('HSET', marker, 'uid', ARGV[9], 'created_at', whole(now))
  redis.call('ZADD', SCHEDULES, 0, schedule)
elseif old[2] == ARGV[7] then
  return {'same', version}
end
if old[4] then
  if tonumber(old[3]) > now then
    withdraw(old[4], old[5], now, ARGV[6])
  else
    redis.call('HSET', marker, 'ran', old[4], 'ran_at', old[3])
  end
  redis.call('HDEL', marker, 'tick', 'id', 'queue')
end
local later = (tonumber(version) or 0) + 1
redis.call('HSET', marker, 'version', later, 'definition', ARGV[7], 'cron', ARGV[8], unpack(ARGV, 10))
if not old[6] then redis.call('ZADD', SCHEDULES_DUE, whole(now), schedule) end
return {version and 'changed' or 'made', later}
