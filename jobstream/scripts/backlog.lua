-- What waits in the queues, for whoever watches or scales. It writes nothing, and its cost has a bound: of many workers,
-- running jobs or owners it looks at some, and concludes from them.
-- ARGV  1… names of queues that are known; those that workers serve are added
-- Returns {now (ms), workers, webhooks in the mailbag, 8 counts: scheduled, queued, running, retrying, cancelling,
-- succeeded, failed, cancelled, {queue, waiting, running, all, wait of the oldest (ms), without a worker}, …}
local WORKERS_AT_MOST, RUNNING_AT_MOST, OWNERS_AT_MOST, QUEUES_AT_MOST, TASKS_AT_MOST = 500, 1000, 200, 100, 100
local now = now_ms()

local names, seen = {}, {}
local function name_queue(name)
  if seen[name] or #names >= QUEUES_AT_MOST then return end
  seen[name] = true
  names[#names + 1] = name
end
for _, name in ipairs(ARGV) do name_queue(name) end
local fresh = redis.call('ZCOUNT', WORKERS, now - 15000, '+inf')
for _, worker in ipairs(redis.call('ZREVRANGE', WORKERS, 0, WORKERS_AT_MOST - 1)) do
  for name in string.gmatch(redis.call('HGET', WORKER .. worker, 'queues') or '', '%S+') do name_queue(name) end
end

local answer = {whole(now), fresh, redis.call('LLEN', MAILBAG)}
for _, status in ipairs({'scheduled', 'queued', 'running', 'retrying', 'cancelling', 'succeeded', 'failed', 'cancelled'}) do
  answer[#answer + 1] = redis.call('ZCARD', INDEX_STATUS .. status)
end

local running = {}
for _, status in ipairs({'running', 'cancelling'}) do
  local ids = redis.call('ZREVRANGE', INDEX_STATUS .. status, 0, RUNNING_AT_MOST - 1)
  local each = #ids > 0 and redis.call('ZCARD', INDEX_STATUS .. status) / #ids
  for _, id in ipairs(ids) do
    local queue = redis.call('HGET', RECORD .. id, 'queue')
    if queue then running[queue] = (running[queue] or 0) + each end
  end
end

-- A step of priority puts a job 1e9 ms forward in its queue. Of each priority the first is the oldest.
local function oldest(zset)
  local longest, from = -1, '-inf'
  for _ = 0, 100 do
    local first = redis.call('ZRANGEBYSCORE', zset, from, whole(now), 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then break end
    local late = now - tonumber(first[2])
    longest = math.max(longest, late % 1e9)
    from = '(' .. whole(now - math.floor(late / 1e9) * 1e9)
  end
  return longest
end

for _, name in ipairs(names) do
  local queue = queue_key(name)
  local waiting, longest = redis.call('ZCOUNT', queue, '-inf', whole(now)), oldest(queue)
  -- Jobs of owners wait for their turn in rooms; what arq's queue says of those is not when they were due.
  local owners = redis.call('SRANDMEMBER', ROOMS .. name, OWNERS_AT_MOST)
  local in_rooms = 0
  for _, owner in ipairs(owners) do
    in_rooms = in_rooms + redis.call('ZCARD', ROOM .. name .. ' ' .. owner)
    longest = math.max(longest, oldest(ROOM .. name .. ' ' .. owner), oldest(SEATS .. name .. ' ' .. owner))
  end
  if #owners == OWNERS_AT_MOST then in_rooms = in_rooms * redis.call('SCARD', ROOMS .. name) / OWNERS_AT_MOST end
  local lacking = 0
  for _, task in ipairs(redis.call('SRANDMEMBER', LACKED .. name, TASKS_AT_MOST)) do
    local left = left_key(name, task)
    lacking = lacking + redis.call('ZCARD', left)
    longest = math.max(longest, oldest(left))
  end
  answer[#answer + 1] = {name, whole(waiting + in_rooms), whole(running[name] or 0), redis.call('ZCARD', queue), whole(longest), lacking}
end
return answer
