-- Store a job that is to run after others; `submit` is submit.lua, `after` is after.lua.
-- KEYS  1 the queue's zset
-- ARGV  those of submit (delay: 366 days), then: ids of the others, its delay (ms), its run at (ms, 0: now), its owner or ''
-- Returns what submit does; but {'unknown', id} when there is no such job, and {'waiting', record, …} instead of {'stored',
-- now, due, …}.
local owner = table.remove(ARGV)
local run_at = table.remove(ARGV)
local delay = table.remove(ARGV)
local ids = table.remove(ARGV)
local id, key = ARGV[1], IDEMPOTENCY .. ARGV[10]
local again = redis.call('EXISTS', RECORD .. id) == 1 or (ARGV[10] ~= '' and redis.call('HEXISTS', key, 'print') == 1)
local unknown = not again and after().unknown(ids, owner)
if unknown then return {'unknown', unknown} end
local answer = submit()
if answer[1] ~= 'stored' then return answer end
local now = answer[2]
after().bind(id, ids, delay, run_at, now)
after().settle(now)
local record = redis.call('HGETALL', RECORD .. id)
if ARGV[10] ~= '' then
  redis.call('DEL', key)
  redis.call('HSET', key, 'print', ARGV[11], unpack(record))
  redis.call('PEXPIRE', key, 86400000)
end
return {'waiting', record, unpack(answer, 4)}
