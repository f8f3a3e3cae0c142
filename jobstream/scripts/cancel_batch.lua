-- Stop a batch: none of its jobs begins any more, and some of them are stopped now; `stop` is stop.lua.
-- ARGV  1 the batch's id   2 error of a job that is cancelled at once (JSON)   3… ids of jobs
-- Returns {} when there is no record, {'done', record} when it had ended, else {'cancelling', record}.
even_when_full()
local batch, record = ARGV[1], RECORD .. ARGV[1]
local status = redis.call('HGET', record, 'status')
if not status then return {} end
if FINAL[status] then return {'done', redis.call('HGETALL', record)} end
if status ~= 'cancelling' then
  local about = redis.call('HMGET', record, 'version', 'log_bytes')
  local event = event_text(about[1] + 1, 'status', status_data('cancelling', 0), now_ms())
  redis.call('HSET', record, 'status', 'cancelling', 'version', about[1] + 1, 'log_bytes', keep(batch, event, about[2]))
  redis.call('PUBLISH', EVENTS .. batch, event)
end
for at = 3, #ARGV do
  if redis.call('HGET', RECORD .. ARGV[at], 'batch') == batch then stop(ARGV[at], false, ARGV[2], '') end
end
if ended_for_others[1] then after().settle(now_ms()) end
return {'cancelling', redis.call('HGETALL', record)}
