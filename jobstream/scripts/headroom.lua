-- Used by claim: while several tenants have jobs for a worker, its last free slots are kept for those that have less than
-- their share of it. What runs in it the worker says itself; who had jobs for it lately is remembered here.
-- Arguments: what the worker says (`free kept slots queues owner count owner count …`: its free slots, how many it keeps,
-- how many it has in all, the queues that it serves, and how many jobs of whom it runs), now (ms), turns
-- Returns the functions; jobs without an owner need none of them.
local LATELY = 600000 -- ms: as long as a tenant that has no jobs now is thought of
local AT_MOST = 100 -- tenants that are looked at: those that came last
local said, now, turns = ...
local free, kept, slots, queues, owners = string.match(said, '^(%d+) (%d+) (%d+) (%S+)(.*)$')
free, kept, slots = tonumber(free), tonumber(kept), tonumber(slots)
local active, running, noted, weights = ACTIVE .. queues, {}, {}, nil
for owner, count in string.gmatch(owners, '(%S+) (%d+)') do running[owner] = tonumber(count) end

local function note(owner)
  if noted[owner] then return end
  noted[owner] = true
  if redis.call('ZADD', active, whole(now), owner) == 1 then redis.call('PEXPIRE', active, 86400000) end
end

local function all_weights()
  local here = {}
  for owner in pairs(running) do
    if #here >= 2 * AT_MOST then break end
    here[#here + 1], here[#here + 2] = whole(now), owner
  end
  if #here > 0 then redis.call('ZADD', active, unpack(here)) end
  redis.call('ZREMRANGEBYSCORE', active, '-inf', whole(now - LATELY))
  return turns().weight_of_all(redis.call('ZREVRANGE', active, 0, AT_MOST - 1))
end

local headroom = {}

-- True when the owner may have one more slot after so many that this claim has dealt. One that has none always may: what
-- is kept is for such.
function headroom.may_have(owner, dealt)
  note(owner)
  if free - dealt > kept then return true end
  weights = weights or all_weights()
  return (running[owner] or 0) + 1 <= math.max(1, slots * turns().weight_of(owner) / weights)
end

function headroom.count(owner)
  running[owner] = (running[owner] or 0) + 1
end

return headroom
