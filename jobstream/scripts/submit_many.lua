-- Store jobs and put them on their queues, all or none; each as submit.lua does, but one wake-up per queue; `store` is store.lua.
-- KEYS  1… the queues' zsets (their names are made from ARGV)
-- ARGV  1 until when the caller waits (ms, 0: for ever)   2 how long jobs may wait (ms)   3 idempotency key or ''
--       4 fingerprint of the request   5 what reserves the key: the id from which the jobs' ids count up
--       6 the service's limits, as admit.lua has them   7… of each job: id, queue's name, task, payload, delay (ms), run at (ms, 0: now), tags, how many words follow,
--       more fields: name, value, …
-- Returns {'stored', now, how many are due later, …} (ms) and what admit.lua refuses, as submit.lua does; {'late', now}, {'mismatch'} and {'held'} as submit.lua does; {'replayed', 5} with that of
-- the request for which the key stands; {'taken'} when all ids are (a repeated call has stored them before);
-- {'clash', id} when some are.
local now = now_ms()
local key = IDEMPOTENCY .. ARGV[3]
if ARGV[3] ~= '' then
  local held = redis.call('HMGET', key, 'print', 'by', 'first')
  if held[1] then
    if held[1] ~= ARGV[4] then return {'mismatch'} end
    return {'replayed', held[3]}
  end
  if held[2] and held[2] ~= ARGV[5] then return {'held'} end
end
local jobs, taken, names = {}, {}, {}
local at = 7
while at <= #ARGV do
  local id = ARGV[at]
  jobs[#jobs + 1] = at
  names[#names + 1] = RECORD .. id
  names[#names + 1] = ARQ_JOB .. id
  names[#names + 1] = ARQ_RESULT .. id
  at = at + 8 + tonumber(ARGV[at + 7])
  if #names == 3000 or at > #ARGV then
    if redis.call('EXISTS', unpack(names)) > 0 then
      for place = 1, #names, 3 do
        if redis.call('EXISTS', names[place], names[place + 1], names[place + 2]) > 0 then
          taken[#taken + 1] = string.sub(names[place], #RECORD + 1)
        end
      end
    end
    names = {}
  end
end
if #taken == #jobs then return {'taken'} end
if #taken > 0 then return {'clash', taken[1]} end
if tonumber(ARGV[1]) > 0 and now > tonumber(ARGV[1]) then return {'late', now} end

-- What goes to the zsets is gathered: one ZADD with hundreds of members costs a fraction of hundreds of ZADDs.
local gathered = {}
local function add(zset, score, member)
  local words = gathered[zset]
  if not words then
    words = {}
    gathered[zset] = words
  end
  words[#words + 1] = score
  words[#words + 1] = member
  if #words == 1000 then
    redis.call('ZADD', zset, unpack(words))
    gathered[zset] = nil
  end
end

local all_turns
local function turns_once()
  all_turns = all_turns or turns()
  return all_turns
end
local function enter(...) turns_once().enter(...) end

local queues, owners, owned = {}, {}, false
for _, at in ipairs(jobs) do
  queues[ARGV[at + 1]] = (queues[ARGV[at + 1]] or 0) + 1
  for field = at + 8, at + 7 + tonumber(ARGV[at + 7]), 2 do
    if ARGV[field] == 'owner' then
      owned = true
      owners[ARGV[field + 1]] = (owners[ARGV[field + 1]] or 0) + 1
    end
  end
end
local quota = {}
if owned or ARGV[6] ~= '0 0 0' then
  local refusal, left = admit(now, ARGV[6], queues, owners, turns_once)
  if refusal then return refusal end
  quota = left
end

local wakes, later = {}, 0
for _, at in ipairs(jobs) do
  local id, queue_name = ARGV[at], ARGV[at + 1]
  local due = store(now, add, enter, queue_key(queue_name), id, queue_name, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[2],
    ARGV[at + 6], at + 8, at + 7 + tonumber(ARGV[at + 7]))
  if due > now then later = later + 1 end
  wakes[queue_name] = (wakes[queue_name] or 0) + 1
end
for zset, words in pairs(gathered) do redis.call('ZADD', zset, unpack(words)) end
if ARGV[3] ~= '' then
  redis.call('DEL', key)
  redis.call('HSET', key, 'print', ARGV[4], 'first', ARGV[5])
  redis.call('PEXPIRE', key, 86400000)
end
for queue_name, count in pairs(wakes) do wake(queue_name, math.min(count, 100)) end -- they wake the others
return {'stored', now, later, unpack(quota)}
