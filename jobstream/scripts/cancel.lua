-- Stop a job: one that waits ends at once, one that runs is told so through its worker.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 `1` to purge it once it has ended   3 error of one that is cancelled at once (JSON)
--       4 the only status in which to stop it, '': in any
-- Returns {} when there is no record, {'other', record} when it has another status, {'done', record} when it had ended, {'cancelled', record} when it waited,
-- {'cancelling', record} when it runs. A purged record is returned as it was.
even_when_full()
local id, purge = ARGV[1], ARGV[2] == '1'
local record = RECORD .. id
local status = redis.call('HGET', record, 'status')
if not status then return {} end
if ARGV[4] ~= '' and status ~= ARGV[4] then return {'other', redis.call('HGETALL', record)} end
local verdict, stored
if FINAL[status] then
  verdict = 'done'
elseif redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 1 then
  verdict = 'cancelling'
  local now = now_ms()
  if purge then redis.call('HSET', record, 'purge', '1') end
  if status ~= 'cancelling' then
    set_status(id, 'cancelling', now)
  end
  redis.call('ZADD', ARQ_ABORT, whole(now), id)
  redis.call('PUBLISH', CONTROL .. (redis.call('HGET', record, 'worker') or ''), 'cancel ' .. id)
else
  verdict = 'cancelled'
  local about = redis.call('HMGET', record, 'queue', 'task', 'owner')
  local queue, task, owner = about[1], about[2] or '', about[3]
  redis.call('ZREM', PROMOTE .. queue, id)
  redis.call('ZREM', PARKED .. task, id)
  if owner then redis.call('ZREM', PARKED .. task .. ' ' .. owner, id) end
  redis.call('ZREM', left_key(queue, task), id)
  if purge then redis.call('HSET', record, 'purge', '1') end
  if owner then turns().leave(queue, owner, id, now_ms()) end
  stored = finish(id, KEYS[1], 'cancelled', now_ms(), 'error', ARGV[3])
end
stored = stored or redis.call('HGETALL', record)
if purge and verdict == 'done' then forget(id) end
return {verdict, stored}
