-- Give a job back unfinished, at once and uncounted: the worker is shutting down.
-- KEYS  1 the queue's zset (unused: one shape for all writes of an attempt)
-- ARGV  1 id   2 token   3 queue's name
-- Returns 1, or 0 when the attempt no longer holds the job.
even_when_full()
if not holds(ARGV[1], ARGV[2]) then return 0 end
give_back(ARGV[1], ARGV[3], now_ms())
return 1
