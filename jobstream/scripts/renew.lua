-- Renew the leases of all jobs that a worker runs.
-- ARGV  1 lease (ms)   2… id, token, queue's zset, id, token, queue's zset, …
-- Returns id, verdict, id, verdict, … for the jobs that need attention: `lost` or `cancel`.
even_when_full()
local lease, now, answer = ARGV[1], now_ms(), {}
after_outage(now, tonumber(lease))
for at = 2, #ARGV, 3 do
  local id = ARGV[at]
  if not holds(id, ARGV[at + 1]) then
    answer[#answer + 1] = id
    answer[#answer + 1] = 'lost'
  else
    redis.call('SET', ARQ_IN_PROGRESS .. id, ARGV[at + 1], 'PX', lease) -- set, not expire: it may have run out
    redis.call('ZADD', ARGV[at + 2], 'XX', whole(now + tonumber(lease)), id)
    local record = redis.call('HMGET', RECORD .. id, 'status', 'task')
    if record[2] then redis.call('ZADD', RUNNING .. record[2], 'XX', whole(now + tonumber(lease)), id) end
    if record[1] == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then
      answer[#answer + 1] = id
      answer[#answer + 1] = 'cancel'
    end
  end
end
return answer
