-- Store jobs as a batch, which counts them; `submit_many` is submit_many.lua.
-- KEYS  those of submit_many
-- ARGV  those of submit_many (each job has the field `batch`), then: the batch's id, how many jobs it has, how long its
--       record lives after its end (ms), its owner or ''
-- Returns what submit_many does.
local owner = table.remove(ARGV)
local ttl = table.remove(ARGV)
local jobs = tonumber(table.remove(ARGV))
local batch = table.remove(ARGV)
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
return answer
