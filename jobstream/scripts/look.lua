-- Whether one more job might come now: looked at before its body is read. Nothing is charged, and nothing promised.
-- ARGV  1 queue's name ('': not known yet)   2 owner ('': nobody)   3 the service's limits, as admit.lua has them
-- Returns what admit.lua refuses; {'may'} else.
local queues, owners = {}, {}
if ARGV[1] ~= '' then queues[ARGV[1]] = 1 end
if ARGV[2] ~= '' then owners[ARGV[2]] = 1 end
local all_turns
local function turns_once()
  all_turns = all_turns or turns()
  return all_turns
end
return admit(now_ms(), ARGV[3], queues, owners, turns_once, true) or {'may'}
