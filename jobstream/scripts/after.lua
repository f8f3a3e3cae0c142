-- Used by the scripts that store jobs which wait for others, and by those that end jobs: a job that waits is scheduled,
-- stands in its queue at a time that does not come, and its record's `unmet` names the jobs that have not succeeded yet.
-- Each of those has it among its successors. The script that ends one of them lets it go, or ends it too.
-- Returns the functions.
local FAR, LOOK, LIVE = 31622400000, 600000, 604800000 -- ms: 366 days, 10 minutes, 7 days
local CASCADE = 2000 -- jobs that one script ends because others did; the sweep goes on with the rest
local after = {}

local function add(zset, score, member) redis.call('ZADD', zset, score, member) end

-- What it waited for has succeeded.
local function let_go(id, now)
  local record = RECORD .. id
  local about = redis.call('HMGET', record, 'queue', 'run_at', 'priority', 'owner')
  local queue_name, due, priority, owner = about[1], tonumber(about[2]) or now, tonumber(about[3]) or 0, about[4]
  local queue, live = queue_key(queue_name), math.max(due, now) + LIVE
  redis.call('HDEL', record, 'unmet')
  redis.call('ZREM', WAITING, id)
  keep_until(id, live)
  redis.call('PEXPIREAT', ARQ_JOB .. id, whole(live))
  if due > now then
    redis.call('ZADD', queue, whole(due), id)
    if priority ~= 0 and not owner then redis.call('ZADD', PROMOTE .. queue_name, whole(due), id) end
  else
    if owner then
      redis.call('ZREM', queue, id)
      turns().enter(queue_name, owner, id, now, priority, now, add)
    else
      redis.call('ZADD', queue, whole(score(now, priority)), id)
    end
    redis.call('HDEL', record, 'run_at')
    set_status(id, 'queued', now)
  end
  wake(queue_name, 1)
end

-- What it waited for has not succeeded: `how` is that job's status, 'gone' when it has none.
local function give_up(id, predecessor, how, now)
  local why = how == 'failed' and ' failed' or how == 'cancelled' and ' was cancelled' or ' has expired'
  local problem = '{"type":"/problems/predecessor-failed","title":"A job that it was to run after did not succeed","status":424,"detail":'
    .. cjson.encode('Job ' .. predecessor .. why) .. ',"code":"predecessor-failed","retryable":false,"attempt":0}'
  redis.call('ZREM', WAITING, id)
  finish(id, queue_key(redis.call('HGET', RECORD .. id, 'queue') or ''), how == 'cancelled' and 'cancelled' or 'failed', now,
    'error', problem)
end

-- True for a job that waits.
local function waits(id)
  local about = redis.call('HMGET', RECORD .. id, 'status', 'unmet')
  return about[1] == 'scheduled' and about[2]
end

-- Look at what a waiting job waits for, and let it go, end it, or see to it that it is told.
function after.look(id, now)
  local unmet = waits(id)
  if not unmet then
    redis.call('ZREM', WAITING, id)
    return
  end
  local left = {}
  for predecessor in string.gmatch(unmet, '[^ ]+') do
    local status = redis.call('HGET', RECORD .. predecessor, 'status')
    if not status or status == 'failed' or status == 'cancelled' then
      give_up(id, predecessor, status or 'gone', now)
      return
    end
    if status ~= 'succeeded' then
      left[#left + 1] = predecessor
      redis.call('SADD', SUCCESSORS .. predecessor, id)
      redis.call('PEXPIRE', SUCCESSORS .. predecessor, whole(FAR + LIVE))
      redis.call('HSET', RECORD .. predecessor, 'successors', '1')
    end
  end
  if not left[1] then
    let_go(id, now)
    return
  end
  redis.call('HSET', RECORD .. id, 'unmet', table.concat(left, ' '))
  redis.call('ZADD', WAITING, whole(now + LOOK), id)
end

-- A new job, stored as if it were due in 366 days, begins to wait. `delay`, `run_at`: as it was asked for (ms).
function after.bind(id, unmet, delay, run_at, now)
  local record, due = RECORD .. id, math.max(now + tonumber(delay), tonumber(run_at))
  redis.call('HSET', record, 'unmet', unmet)
  if due > now then redis.call('HSET', record, 'run_at', whole(due)) else redis.call('HDEL', record, 'run_at') end
  redis.call('ZREM', PROMOTE .. redis.call('HGET', record, 'queue'), id)
  after.look(id, now)
end

-- A job that is run again, and is in no queue: true when it waits again. `unmet`: what it was waiting for when it ended.
function after.bind_again(id, queue, unmet, now)
  redis.call('HSET', RECORD .. id, 'unmet', unmet)
  set_status(id, 'scheduled', now)
  redis.call('ZADD', queue, whole(now + FAR), id)
  redis.call('PEXPIRE', ARQ_JOB .. id, whole(FAR + LIVE))
  keep_until(id, now + FAR + LIVE)
  after.look(id, now)
end

-- The first of these jobs that is not there, or belongs to another owner ('': any will do).
function after.unknown(ids, owner)
  for id in string.gmatch(ids, '[^ ]+') do
    if string.sub(id, 1, 1) ~= '#' then -- else it comes with the same batch
      local about = redis.call('HMGET', RECORD .. id, 'status', 'owner')
      if not about[1] or (owner ~= '' and about[2] ~= owner) then return id end
    end
  end
end

-- Tell the successors of all that has ended in this script; what ends with them tells its own.
function after.settle(now)
  local at, left = 1, CASCADE
  while ended_for_others[at] do
    local id, status = ended_for_others[at][1], ended_for_others[at][2]
    local waiting = redis.call('SMEMBERS', SUCCESSORS .. id)
    redis.call('DEL', SUCCESSORS .. id)
    redis.call('HDEL', RECORD .. id, 'successors')
    for _, successor in ipairs(waiting) do
      local unmet = waits(successor)
      if unmet and status == 'succeeded' then
        local rest = {}
        for one in string.gmatch(unmet, '[^ ]+') do
          if one ~= id then rest[#rest + 1] = one end
        end
        if rest[1] then redis.call('HSET', RECORD .. successor, 'unmet', table.concat(rest, ' ')) else let_go(successor, now) end
      elseif unmet and left > 0 then
        left = left - 1
        give_up(successor, id, status, now)
      elseif unmet then
        redis.call('ZADD', WAITING, whole(now), successor)
      end
    end
    at = at + 1
  end
  ended_for_others = {}
end

return after
