-- A worker says goodbye.
-- ARGV  1 worker id
redis.call('DEL', WORKER .. ARGV[1])
redis.call('ZREM', WORKERS, ARGV[1])
return 1
