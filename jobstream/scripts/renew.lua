-- Renew the leases of all jobs that a worker runs.
-- ARGV  1 lease (ms)   2… id, token, queue's zset, id, token, queue's zset, …
-- Returns id, verdict, id, verdict, … for the jobs that need attention: `lost` or `cancel`.
even_when_full()
local lease, now, answer = ARGV[1], now_ms(), {}
local grace = after_outage(now, tonumber(lease))
for at = 2, #ARGV, 3 do
  local id = ARGV[at]
  if not holds(id, ARGV[at + 1]) then
    answer[#answer + 1] = id
    answer[#answer + 1] = 'lost'
  else
    redis.call('SET', ARQ_IN_PROGRESS .. id, ARGV[at + 1], 'PX', lease) -- set, not expire: it may have run out
    redis.call('ZADD', ARGV[at + 2], 'XX', whole(now + tonumber(lease)), id)
    local record = redis.call('HMGET', RECORD .. id, 'status', 'task', 'owner')
    if record[2] then redis.call('ZADD', RUNNING .. record[2], 'XX', whole(now + tonumber(lease)), id) end
    if record[3] then redis.call('ZADD', RUNNING .. '=' .. record[3], 'XX', whole(now + tonumber(lease)), id) end
    if record[1] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then
      answer[#answer + 1] = id
      answer[#answer + 1] = 'cancel'
    end
  end
end
-- A dead worker's job stands in the queue at its lease's end, behind all that was queued before. When every worker is busy
-- that may be long: it gets its old place back. Workers that are not busy claim it as soon as its lease has ended.
if not grace and redis.call('SET', RECOVERY, '1', 'NX', 'PX', 500) then
  for _, status in ipairs({'running', 'cancelling'}) do
    for _, id in ipairs(redis.call('ZRANGE', INDEX_STATUS .. status, 0, 4999)) do
      if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 0 then
        local old = redis.call('HMGET', RECORD .. id, 'queue', 'created_at', 'priority')
        if old[2] then
          redis.call('ZADD', queue_key(old[1]), 'XX', 'LT', whole(score(tonumber(old[2]), old[3])), id)
        end
      end
    end
  end
end
return answer
