-- Store a job that a running one has asked for, among its children, which are a batch; `submit` is submit.lua.
-- KEYS  1 the queue's zset
-- ARGV  those of submit (its fields name batch, parent, root and depth), then: the parent's id, the batch's id, the id of
--       the job from which they all descend, how many may descend from it, how long the batch's record lives after its end
--       (ms), the owner or ''
-- Returns what submit does; {'ended'} when the parent does not run (any more), {'many'} when there are too many already.
local owner = table.remove(ARGV)
local ttl = table.remove(ARGV)
local most = tonumber(table.remove(ARGV))
local root = table.remove(ARGV)
local batch = table.remove(ARGV)
local parent = table.remove(ARGV)
local group, now = RECORD .. batch, now_ms()
if redis.call('HGET', RECORD .. parent, 'status') ~= 'running' then return {'ended'} end
if tonumber(redis.call('HGET', RECORD .. root, 'family') or 0) >= most and redis.call('EXISTS', RECORD .. ARGV[1]) == 0 then
  return {'many'}
end
local answer = submit()
local is = redis.call('HGET', group, 'status')
if is == 'cancelling' then redis.call('HSET', group, 'status', 'running') end -- of an attempt before
if answer[1] ~= 'stored' then return answer end
if not is then
  local event = event_text(1, 'status', status_data('queued', 0), now)
  redis.call('HSET', group, 'id', batch, 'status', 'queued', 'version', 1, 'jobs', 0, 'created_at', whole(now), 'ttl', ttl, 'of', parent,
    'log_bytes', keep(batch, event, 0))
  if owner ~= '' then redis.call('HSET', group, 'owner', owner) end
  redis.call('PEXPIRE', group, BATCH_LIFE)
  redis.call('PEXPIRE', LOG .. batch, BATCH_LIFE)
  redis.call('HSET', RECORD .. parent, 'children', batch)
end
redis.call('HINCRBY', group, 'jobs', 1)
redis.call('RPUSH', CHILDREN .. batch, ARGV[1])
redis.call('PEXPIRE', CHILDREN .. batch, BATCH_LIFE)
if redis.call('EXISTS', RECORD .. root) == 1 then redis.call('HINCRBY', RECORD .. root, 'family', 1) end
move_in_batch(batch, nil, redis.call('HGET', RECORD .. ARGV[1], 'status'))
tell_batches()
return answer
