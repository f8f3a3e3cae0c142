-- Complete the record of a job that a stock arq client enqueued, now that its payload has been read.
-- KEYS  1 the queue's zset (unused: one shape for all writes of an attempt)
-- ARGV  1 id   2 token   3 task   4 enqueued at (ms)   5 ttl (ms)   6 how many attempts it gets
--       7 the words by which it is found
-- Returns 1, or 0 when the attempt no longer holds the job.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
local record = RECORD .. id
redis.call('ZREM', EXPIRY, stored_expiry_member(id))
redis.call('HSET', record, 'task', ARGV[3], 'created_at', ARGV[4], 'ttl', ARGV[5], 'max_attempts', ARGV[6],
  'tags', '', 'words', ARGV[7])
redis.call('ZADD', INDEX, ARGV[4], id)
redis.call('ZADD', INDEX_TASK .. ARGV[3], ARGV[4], id)
for _, member in ipairs(word_members(id, ARGV[7], ARGV[4])) do redis.call('ZADD', INDEX_WORDS, 0, member) end
redis.call('ZADD', EXPIRY, whole(now_ms() + redis.call('PTTL', record)), stored_expiry_member(id))
return 1
