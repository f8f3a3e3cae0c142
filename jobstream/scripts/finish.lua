-- End a job by the attempt that holds it.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 token   3 status   4 result (JSON or '')   5 error (JSON or '')   6 arq's result   7 its lifetime (ms)
-- Returns 1, or 0 when the attempt no longer holds the job: a zombie's result is refused.
even_when_full()
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 0 end
if tonumber(ARGV[7]) > 0 then redis.call('SET', ARQ_RESULT .. id, ARGV[6], 'PX', ARGV[7]) end
if ARGV[5] == '' then
  finish(id, KEYS[1], ARGV[3], now_ms(), 'result', ARGV[4])
elseif ARGV[3] ~= 'failed' then
  finish(id, KEYS[1], ARGV[3], now_ms(), 'error', ARGV[5])
else
  local errors = redis.call('HGET', RECORD .. id, 'errors')
  finish(id, KEYS[1], ARGV[3], now_ms(), 'error', ARGV[5], 'errors', (errors and errors .. ',' or '') .. ARGV[5])
end
return 1
