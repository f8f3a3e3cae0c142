-- Begin a delivery, unless as many as may be at once are under way to its receiver. Receivers that did not answer of late
-- share one lane for a minute, and are tried with one at a time for an hour, or until they answer: however many they are,
-- they do not take the slots of the others.
-- ARGV  1 the job that delivers   2 lane   3 how many at once   4 how long it takes at most (ms)   5 how many at once to all slow ones
-- Returns {lane, how many at once, 1}, or {…, 0} when it has to wait there (postpone.lua).
local name, most, now = ARGV[2], tonumber(ARGV[3]), now_ms()
local slow = redis.call('PTTL', SLOW_RECEIVER .. name)
if slow > 3600000 then
  name, most = 'slow', tonumber(ARGV[5])
elseif slow > 0 then
  most = 1
end
local lane = LANE .. name
redis.call('ZREMRANGEBYSCORE', lane, '-inf', whole(now))
-- Who was called from the slow ones' line, and is slow no longer, calls the next one of it: else nobody would.
if name ~= 'slow' and redis.call('EXISTS', PARKED .. 'lane:slow') == 1 and redis.call('ZCARD', LANE .. 'slow') < tonumber(ARGV[5]) then
  unpark(PARKED .. 'lane:slow', 1)
end
if redis.call('ZCARD', lane) >= most and not redis.call('ZSCORE', lane, ARGV[1]) then return {name, most, 0} end
redis.call('ZADD', lane, whole(now + tonumber(ARGV[4])), ARGV[1])
redis.call('PEXPIRE', lane, whole(tonumber(ARGV[4]) + 60000))
return {name, most, 1}
