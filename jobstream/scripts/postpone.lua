-- Give a delivery back to its queue, uncounted, until one of those that are under way to its receiver has ended.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 queue's name   4 lane   5 how many at once
-- Returns 1, or 0 when the attempt no longer holds the job.
even_when_full()
local id, lane, parked, now = ARGV[1], LANE .. ARGV[4], PARKED .. 'lane:' .. ARGV[4], now_ms()
if not holds(id, ARGV[2]) then return 0 end
give_back(id, ARGV[3], now)
redis.call('ZREMRANGEBYSCORE', lane, '-inf', whole(now))
if redis.call('ZCARD', lane) >= tonumber(ARGV[5]) then
  redis.call('ZADD', parked, redis.call('ZSCORE', KEYS[1], id), id)
  redis.call('PEXPIRE', parked, 86400000)
  redis.call('ZADD', KEYS[1], 'XX', whole(now + 60000), id) -- looked at again then, should nobody call it
end
return 1
