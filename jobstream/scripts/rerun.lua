-- Run a failed or cancelled job again: the same id, attempts counted on.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 queue's name   3 how long it may wait (ms)   4 only if it ended by then (ms; '': whenever)
-- Returns {} when there is no record, {'again', record}, or {its status, record} when it is in no state to be run again
-- ('lost': its payload is gone; 'newer': it ended later; 'blocked': a job that it runs after has not succeeded, which is
-- the third).
local id, record = ARGV[1], RECORD .. ARGV[1]
local old = redis.call('HMGET', record, 'status', 'payload', 'attempt', 'finished_at', 'unmet')
if not old[1] then return {} end
if old[1] ~= 'failed' and old[1] ~= 'cancelled' then return {old[1], redis.call('HGETALL', record)} end
if ARGV[4] ~= '' and tonumber(old[4] or 0) > tonumber(ARGV[4]) then return {'newer', redis.call('HGETALL', record)} end
if not old[2] then return {'lost', redis.call('HGETALL', record)} end
for predecessor in string.gmatch(old[5] or '', '[^ ]+') do
  local status = redis.call('HGET', RECORD .. predecessor, 'status')
  if not status or status == 'failed' or status == 'cancelled' then return {'blocked', redis.call('HGETALL', record), predecessor} end
end
local now = now_ms()
redis.call('SET', ARQ_JOB .. id, old[2], 'PX', ARGV[3])
redis.call('SET', ARQ_RETRY .. id, old[3] or 0, 'PX', ARGV[3])
redis.call('DEL', ARQ_RESULT .. id)
redis.call('ZREM', ARQ_ABORT, id) -- stock arq marks jobs that have ended, too
redis.call('HSET', record, 'spent', old[3] or 0)
redis.call('HDEL', record, 'payload', 'error', 'result', 'finished_at', 'expires_at', 'started_at', 'worker', 'progress',
  'crashes')
if old[5] then
  after().bind_again(id, KEYS[1], old[5], now)
  after().settle(now)
  return {'again', redis.call('HGETALL', record)}
end
local about = redis.call('HMGET', record, 'priority', 'owner')
if about[2] then
  local function add(zset, at, member) redis.call('ZADD', zset, at, member) end
  turns().enter(ARGV[2], about[2], id, now, tonumber(about[1] or 0), now, add)
else
  redis.call('ZADD', KEYS[1], whole(score(now, about[1])), id)
end
set_status(id, 'queued', now)
keep_until(id, now + tonumber(ARGV[3]))
wake(ARGV[2], 1)
return {'again', redis.call('HGETALL', record)}
