-- Take the schedules whose next tick is to be queued. They are given to nobody else for a while; whoever took them may die.
-- ARGV  1 how many at most   2 how long nobody else gets them (ms)
-- Returns {ms until more are due, or -1, schedule, its hash, schedule, its hash, …}.
local now = now_ms()
local found = {-1}
for _, schedule in ipairs(redis.call('ZRANGEBYSCORE', SCHEDULES_DUE, '-inf', whole(now), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local stored = redis.call('HGETALL', SCHEDULE .. schedule)
  if #stored == 0 then -- evicted
    redis.call('ZREM', SCHEDULES_DUE, schedule)
    redis.call('ZREM', SCHEDULES, schedule)
  else
    redis.call('ZADD', SCHEDULES_DUE, whole(now + tonumber(ARGV[2])), schedule)
    found[#found + 1] = schedule
    found[#found + 1] = stored
  end
end
local first = redis.call('ZRANGE', SCHEDULES_DUE, 0, 0, 'WITHSCORES')
if first[2] then found[1] = math.max(0, math.ceil(tonumber(first[2]) - now)) end
return found
