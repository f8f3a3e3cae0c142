-- Begin a delivery, unless as many as may be at once are under way to its receiver.
-- ARGV  1 the job that delivers   2 lane   3 how many at once   4 how long it takes at most (ms)
-- Returns 1, or 0 when it has to wait (postpone.lua).
local lane, now = LANE .. ARGV[2], now_ms()
redis.call('ZREMRANGEBYSCORE', lane, '-inf', whole(now))
if redis.call('ZCARD', lane) >= tonumber(ARGV[3]) and not redis.call('ZSCORE', lane, ARGV[1]) then return 0 end
redis.call('ZADD', lane, whole(now + tonumber(ARGV[4])), ARGV[1])
redis.call('PEXPIRE', lane, whole(tonumber(ARGV[4]) + 60000))
return 1
