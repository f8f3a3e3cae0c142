-- Take expired records out of the indexes, and old abort marks of jobs that are not waiting; look after jobs that wait for
-- others; `after` is after.lua.
-- ARGV  1 how many at most   2 age of an abort mark (ms)   3… the queues' zsets
-- Returns the ids that are gone.
local now, gone = now_ms(), {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', whole(now), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local id = string.match(member, '^[^ ]+')
  local left = redis.call('PTTL', RECORD .. id)
  if left > 0 then
    redis.call('ZADD', EXPIRY, whole(now + left), member)
  else
    local was, batch = leave_indexes(id, member), string.match(member, ' !(%S+)$')
    if batch then move_in_batch(batch, was, 'failed') end -- it has not ended, and will not
    if redis.call('EXISTS', SUCCESSORS .. id) == 1 then ended_for_others[#ended_for_others + 1] = {id, 'gone'} end
    gone[#gone + 1] = id
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ARQ_ABORT, '-inf', whole(now - tonumber(ARGV[2])), 'LIMIT', 0, 100)) do
  local waits = false
  for at = 3, #ARGV do waits = waits or redis.call('ZSCORE', ARGV[at], id) end
  if not waits then redis.call('ZREM', ARQ_ABORT, id) end
end
tell_batches()
for _, id in ipairs(redis.call('ZRANGEBYSCORE', WAITING, '-inf', whole(now), 'LIMIT', 0, tonumber(ARGV[1]))) do after().look(id, now) end
if ended_for_others[1] then after().settle(now) end
return gone
