-- Renew the leases of all jobs that a worker runs.
-- ARGV  1 lease (ms)   2… id, token, queue's zset, id, token, queue's zset, …
-- Returns id, verdict, id, verdict, … for the jobs that need attention: `lost` or `cancel`.
local lease, now, answer = ARGV[1], now_ms(), {}
for at = 2, #ARGV, 3 do
  local id = ARGV[at]
  if not holds(id, ARGV[at + 1]) then
    answer[#answer + 1] = id
    answer[#answer + 1] = 'lost'
  else
    redis.call('PEXPIRE', ARQ_IN_PROGRESS .. id, lease)
    redis.call('ZADD', ARGV[at + 2], 'XX', whole(now + tonumber(lease)), id)
    if redis.call('HGET', RECORD .. id, 'status') == 'cancelling' or redis.call('ZSCORE', ARQ_ABORT, id) then
      answer[#answer + 1] = id
      answer[#answer + 1] = 'cancel'
    end
  end
end
return answer
