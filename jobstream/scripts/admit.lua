-- Used by submit, submit_many and look: whether so many jobs may come, by what their queues hold and how fast their owners
-- submit. Charges the owners when all may, and nobody when one may not; its first write is one that a full Redis refuses.
-- Arguments: now (ms), `depth jobs window`: what a queue may hold, and how many jobs an owner may submit in how many ms,
-- unless something else was set for it (0: no limit), {queue's name → how many come}, {owner → how many come}, turns,
-- whether this is only a look, and nobody is charged
-- Returns a refusal: {'full', queue's name, what it holds, ms until there is room (-1: not known)} or {'over', owner, ms
-- until they may come (-1: never, they are too many), jobs, window (ms), how many may come now, ms until all may}. Else
-- nothing, and what the last owner may still do, {} without one, otherwise from `jobs` on as above.
local now, limits, queues, owners, turns, only_look = ...
local depth, jobs, window = string.match(limits, '(%d+) (%d+) (%d+)')
depth, jobs, window = tonumber(depth), tonumber(jobs), tonumber(window)

-- How long until so many jobs have gone, by how many the workers have claimed since the queue was found full.
local function until_gone(queue_name, too_many)
  local full = redis.call('HMGET', FULL .. queue_name, 'since', 'claimed')
  if not full[1] then
    redis.call('HSET', FULL .. queue_name, 'since', whole(now), 'claimed', 0)
    redis.call('PEXPIRE', FULL .. queue_name, 60000)
    return -1
  end
  local claimed = tonumber(full[2])
  return claimed > 0 and math.ceil(too_many * (now - tonumber(full[1])) / claimed) or -1
end

if depth > 0 then
  for queue_name, coming in pairs(queues) do
    local held = redis.call('ZCARD', queue_key(queue_name))
    if held + coming > depth then
      return {'full', queue_name, held, until_gone(queue_name, held + coming - depth)}
    end
  end
end

-- The generic cell rate algorithm (ITU-T I.371): all that is kept is when the owner will have everything again.
local charges, left = {}, {}
for owner, coming in pairs(owners) do
  local own = turns().limits(owner)
  local most, span = own.jobs or jobs, own.window or window
  if most > 0 then
    local each, at = span / most, math.max(now, tonumber(redis.call('GET', RATE .. owner) or 0))
    local later = at + coming * each
    if later - now > span + 0.01 then
      local wait = coming > most and -1 or math.ceil(later - now - span)
      return {'over', owner, wait, most, span, math.floor((span - at + now) / each + 0.001), math.ceil(at - now)}
    end
    charges[RATE .. owner] = later
    left = {most, span, math.floor((span - later + now) / each + 0.001), math.ceil(later - now)}
  end
end
if only_look then return end
for key, later in pairs(charges) do
  redis.call('SET', key, string.format('%.3f', later), 'PX', whole(math.max(1, math.ceil(later - now))))
end
return nil, left
