-- Store a job and put it on its queue, with a wake-up, all or nothing; `store` is store.lua.
-- KEYS  1 the queue's zset
-- ARGV  1 id   2 queue's name   3 task   4 payload   5 delay (ms)   6 run at (ms, 0: now)   7 how long it may wait (ms)
--       8 tags, separated by spaces   9 until when the caller waits (ms, 0: for ever)   10 idempotency key or ''
--       11 fingerprint of the request   12 the service's limits, as admit.lua has them   13… more fields of the record: name, value, …
-- Returns {'stored', now, due, …} (ms; then what the owner may still submit, as admit.lua has it); what admit.lua refuses; {'taken', record} when the id is (a repeated call gets its own job back); {'replayed',
-- record} when the idempotency key stands for this request: the record as it was first answered, whatever has become of
-- it; {'mismatch'} when the key stands for another request; {'held'} while another one holds it (reserve.lua); {'late',
-- now} when the caller has given up: Redis was frozen, and what was answered with an error must not happen afterwards.
local id, queue_name, task = ARGV[1], ARGV[2], ARGV[3]
local record, key = RECORD .. id, IDEMPOTENCY .. ARGV[10]
local now = now_ms()
if redis.call('EXISTS', record, ARQ_JOB .. id, ARQ_RESULT .. id) > 0 then
  return {'taken', redis.call('HGETALL', record)}
end
if ARGV[10] ~= '' then
  local held = redis.call('HMGET', key, 'print', 'by')
  if held[1] then
    if held[1] ~= ARGV[11] then return {'mismatch'} end
    return {'replayed', redis.call('HGETALL', key)}
  end
  if held[2] and held[2] ~= id then return {'held'} end
end
if tonumber(ARGV[9]) > 0 and now > tonumber(ARGV[9]) then return {'late', now} end
local function add(zset, score, member) redis.call('ZADD', zset, score, member) end
local owner
for at = 13, #ARGV, 2 do
  if ARGV[at] == 'owner' then owner = ARGV[at + 1] end
end
local all_turns
local function turns_once()
  all_turns = all_turns or turns()
  return all_turns
end
local quota = {}
if owner or ARGV[12] ~= '0 0 0' then
  local refusal, left = admit(now, ARGV[12], {[queue_name] = 1}, owner and {[owner] = 1} or {}, turns_once)
  if refusal then return refusal end
  quota = left
end
local function enter(...) turns_once().enter(...) end
local due = store(now, add, enter, KEYS[1], id, queue_name, task, ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], 13, #ARGV)
if ARGV[10] ~= '' then
  redis.call('DEL', key)
  redis.call('HSET', key, 'print', ARGV[11], unpack(redis.call('HGETALL', record)))
  redis.call('PEXPIRE', key, 86400000)
end
wake(queue_name, 1)
return {'stored', now, due, unpack(quota)}
