-- Used by the scripts through which a job comes to its queue or leaves it: the owners of jobs take turns there.
-- Of an owner's waiting jobs only so many as its weight have a seat: they stand in arq's queue by the time when they got
-- it. The others wait in the owner's room, first by priority, then by time; arq's queue has them too, as due in a while,
-- so that arq's clients and workers find them, and none is stuck whatever becomes of seats and rooms.
-- Returns the functions; jobs without an owner need none of them.
local HOLD = 600000 -- ms
local LIFE = 691200000 -- ms: a day longer than a job may wait
local turns, known, in_use = {}, {}, {}

local function seats_of(queue_name, owner) return SEATS .. queue_name .. ' ' .. owner end
local function room_of(queue_name, owner) return ROOM .. queue_name .. ' ' .. owner end

-- What was set for an owner: {jobs, window (ms), running, weight}; nil for each that was not.
function turns.limits(owner)
  if not known[owner] then
    local jobs, window, running, weight = string.match(redis.call('HGET', LIMITS, owner) or '', '^(%S+) (%S+) (%S+) (%S+)$')
    known[owner] = {jobs = tonumber(jobs), window = tonumber(window), running = tonumber(running), weight = tonumber(weight)}
  end
  return known[owner]
end

local function weight(owner)
  return turns.limits(owner).weight or 1
end

turns.weight_of = weight

-- The sum of the weights of so many owners.
function turns.weight_of_all(owners)
  local sum = 0
  for _, limits in ipairs(#owners > 0 and redis.call('HMGET', LIMITS, unpack(owners)) or {}) do
    sum = sum + (limits and tonumber(string.match(limits, '%S+$')) or 1)
  end
  return sum
end

-- The score behind all that is due, also what has become due in this very millisecond: to have had one's turn is to stand
-- behind the others.
local function behind_all(queue, now)
  local last = redis.call('ZREVRANGEBYSCORE', queue, '(' .. whole(now + 1), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return string.format('%.3f', math.max(now, tonumber(last[2] or 0) + 0.001))
end

local function sit(seats, id, place)
  redis.call('ZADD', seats, place, id)
  redis.call('PEXPIRE', seats, LIFE)
end

local function wait_in_room(queue_name, owner, room)
  redis.call('PEXPIRE', room, LIFE)
  if redis.call('SADD', ROOMS .. queue_name, owner) == 1 then redis.call('PEXPIRE', ROOMS .. queue_name, LIFE) end
end

-- The first of the room take the seats that are free. Those that are gone, or run already in a stock worker, take none.
function turns.fill(queue_name, owner, now)
  local queue, seats, room = queue_key(queue_name), seats_of(queue_name, owner), room_of(queue_name, owner)
  local free = weight(owner) - redis.call('ZCARD', seats)
  while free > 0 do
    local first = redis.call('ZPOPMIN', room)
    local id = first[1]
    if not id then
      redis.call('SREM', ROOMS .. queue_name, owner)
      return
    end
    if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 0 and redis.call('ZSCORE', queue, id) then
      redis.call('ZADD', queue, behind_all(queue, now), id)
      sit(seats, id, first[2])
      free = free - 1
    end
  end
end

-- The job waits no longer: its seat is the next one's.
function turns.leave(queue_name, owner, id, now)
  if redis.call('ZREM', seats_of(queue_name, owner), id) == 1 then
    turns.fill(queue_name, owner, now)
  else
    redis.call('ZREM', room_of(queue_name, owner), id)
  end
end

-- A job that is due now takes a seat, or waits for one. `add` adds a member to a zset.
function turns.enter(queue_name, owner, id, due, priority, now, add)
  local queue, seats, room = queue_key(queue_name), seats_of(queue_name, owner), room_of(queue_name, owner)
  local place = score(due, priority)
  if redis.call('ZCARD', seats) < weight(owner) then
    if redis.call('EXISTS', room) == 0 then
      sit(seats, id, whole(place))
      redis.call('ZADD', queue, behind_all(queue, now), id)
      return
    end
    redis.call('ZADD', queue, whole(now + HOLD), id) -- others come first: the weight has just been raised
    redis.call('ZADD', room, whole(place), id)
    turns.fill(queue_name, owner, now)
    wait_in_room(queue_name, owner, room)
    return
  end
  local last = redis.call('ZREVRANGE', seats, 0, 0, 'WITHSCORES')
  if tonumber(last[2]) <= place then
    add(queue, whole(now + HOLD), id)
    if in_use[room] then
      add(room, whole(place), id)
    else
      redis.call('ZADD', room, whole(place), id)
      wait_in_room(queue_name, owner, room)
      in_use[room] = true
    end
    return
  end
  -- It comes before one that has a seat: the owner's places in the queue stay, and are dealt anew.
  redis.call('ZREM', seats, last[1])
  sit(seats, id, whole(place))
  local places, free = redis.call('ZRANGE', seats, 0, -1), {redis.call('ZSCORE', queue, last[1]) or nil}
  for _, seated in ipairs(places) do
    local at = seated ~= id and redis.call('ZSCORE', queue, seated)
    if at then free[#free + 1] = at end
  end
  table.sort(free, function(one, other) return tonumber(one) < tonumber(other) end)
  for at, seated in ipairs(places) do
    if seated == id then
      redis.call('ZADD', queue, free[at] or behind_all(queue, now), id)
    elseif free[at] then
      redis.call('ZADD', queue, 'XX', free[at], seated)
    end
  end
  redis.call('ZADD', queue, 'XX', whole(now + HOLD), last[1])
  redis.call('ZADD', room, last[2], last[1])
  wait_in_room(queue_name, owner, room)
end

-- A worker has come upon the job in the queue: its place among the owner's, when it has a seat. Else it was delayed, tried
-- before, given back or held for a while, and gets in line: there may be thousands such jobs.
function turns.seat(queue_name, owner, id, place, now)
  local seated = redis.call('ZSCORE', seats_of(queue_name, owner), id)
  if seated then return tonumber(seated) end
  local room = room_of(queue_name, owner)
  redis.call('ZADD', room, 'NX', whole(place), id)
  redis.call('ZADD', queue_key(queue_name), 'XX', whole(now + HOLD), id)
  wait_in_room(queue_name, owner, room)
  turns.fill(queue_name, owner, now)
end

-- Seats of jobs that a stock worker has taken, or that are in the queue no longer, are free.
function turns.look_after(queue_name, owner, now)
  local seats = seats_of(queue_name, owner)
  for _, id in ipairs(redis.call('ZRANGE', seats, 0, -1)) do
    if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 1 or not redis.call('ZSCORE', queue_key(queue_name), id) then
      redis.call('ZREM', seats, id)
    end
  end
  turns.fill(queue_name, owner, now)
end

return turns
