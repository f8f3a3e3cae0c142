-- End a delivery: one that waits for its receiver may go.
-- ARGV  1 the job that delivers   2 lane
-- Returns 1.
even_when_full()
redis.call('ZREM', LANE .. ARGV[2], ARGV[1])
unpark(PARKED .. 'lane:' .. ARGV[2], 1)
return 1
