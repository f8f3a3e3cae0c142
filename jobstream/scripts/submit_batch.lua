-- Store jobs as a batch, which counts them; `submit_many` is submit_many.lua, `after` is after.lua.
-- KEYS  those of submit_many
-- ARGV  those of submit_many (each job has the field `batch`), then of each job that is to run after others (it is stored
--       with a delay of 366 days): its id, its delay (ms), its run at (ms, 0: now), ids of the others (with `#` in front:
--       of this batch, an earlier one), its owner or ''; then how many such jobs there are, the batch's id, how many jobs
--       it has, how long its record lives after its end (ms), its owner or ''
-- Returns what submit_many does; {'unknown', id} when there is no such job to run after.
local owner = table.remove(ARGV)
local ttl = table.remove(ARGV)
local jobs = tonumber(table.remove(ARGV))
local batch = table.remove(ARGV)
local waiting = {}
for number = tonumber(table.remove(ARGV)), 1, -1 do
  local own, ids, run_at = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
  local delay = table.remove(ARGV)
  waiting[number] = {table.remove(ARGV), delay, run_at, ids, own}
end
local again = redis.call('EXISTS', RECORD .. batch) == 1
  or (ARGV[3] ~= '' and redis.call('HEXISTS', IDEMPOTENCY .. ARGV[3], 'print') == 1)
local afters = waiting[1] and after()
for _, job in ipairs(again and {} or waiting) do
  local unknown = afters.unknown(job[4], job[5])
  if unknown then return {'unknown', unknown} end
end
local answer = submit_many()
if answer[1] ~= 'stored' then return answer end
local record, now, later = RECORD .. batch, answer[2], answer[3]
local event = event_text(1, 'status', status_data('queued', 0), now)
redis.call('HSET', record, 'id', batch, 'status', 'queued', 'version', 1, 'jobs', jobs, 'created_at', whole(now), 'ttl', ttl,
  'log_bytes', keep(batch, event, 0), 'n_scheduled', later, 'n_queued', jobs - later)
if owner ~= '' then redis.call('HSET', record, 'owner', owner) end
redis.call('PEXPIRE', record, BATCH_LIFE)
redis.call('PEXPIRE', LOG .. batch, BATCH_LIFE)
redis.call('PUBLISH', EVENTS .. batch, event)
for _, job in ipairs(waiting) do
  afters.bind(job[1], string.gsub(job[4], '#', ''), job[2], job[3], now)
end
if afters then afters.settle(now) end
return answer
