-- Used by cancel and cancel_batch: stop a job.
-- Arguments: id, whether to purge it once it has ended, error of one that is cancelled at once (JSON), the only status in
-- which to stop it ('': in any)
-- Returns nil when there is no record, 'other' when it has another status, 'done' when it had ended, 'cancelled' when it
-- waited, 'cancelling' when it runs; and its record, if that is gone now.
local id, purge, problem, only = ...
local record = RECORD .. id
local about = redis.call('HMGET', record, 'status', 'queue', 'task', 'owner', 'worker', 'children')
local status, queue, task, owner = about[1], about[2], about[3] or '', about[4]
if not status or not queue then return nil end
if only ~= '' and status ~= only then return 'other' end
if FINAL[status] then return 'done' end
if purge then redis.call('HSET', record, 'purge', '1') end
local now = now_ms()
if about[6] then -- its children go with it
  local is = redis.call('HGET', RECORD .. about[6], 'status')
  if is and not FINAL[is] then
    redis.call('HSET', RECORD .. about[6], 'status', 'cancelling')
    for _, child in ipairs(redis.call('LRANGE', CHILDREN .. about[6], 0, -1)) do stop(child, false, problem, '') end
  end
end
if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 1 then
  if status ~= 'cancelling' then set_status(id, 'cancelling', now) end
  redis.call('ZADD', ARQ_ABORT, whole(now), id)
  redis.call('PUBLISH', CONTROL .. (about[5] or ''), 'cancel ' .. id)
  return 'cancelling'
end
redis.call('ZREM', PROMOTE .. queue, id)
redis.call('ZREM', PARKED .. task, id)
if owner then redis.call('ZREM', PARKED .. task .. ' ' .. owner, id) end
redis.call('ZREM', left_key(queue, task), id)
if owner then turns().leave(queue, owner, id, now) end
return 'cancelled', finish(id, queue_key(queue), 'cancelled', now, 'error', problem)
