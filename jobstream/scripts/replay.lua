-- Read the journal behind a sequence number, at one moment.
-- ARGV  1 generation   2 sequence number   3 how many entries at most   4 after how many bytes the page ends
-- Returns {} when that journal is no more, else {its last sequence number, 1 when nothing behind that number was trimmed,
-- 1 when it goes on behind these entries, {entry, …}}.
local generation, after = ARGV[1], tonumber(ARGV[2])
local state = redis.call('HMGET', JOURNAL, 'generation', 'seq', 'floor', 'bytes')
if state[1] ~= generation then return {} end
local length = redis.call('LLEN', JOURNAL_LOG)
local complete = after >= tonumber(state[3]) and (length > 0 or state[4] == '0')

local low, high = 0, length -- the first entry behind the number is in [low, high]
while low < high do
  local middle = math.floor((low + high) / 2)
  local seq = string.match(redis.call('LINDEX', JOURNAL_LOG, middle), '^%x+ (%d+)')
  if tonumber(seq) > after then high = middle else low = middle + 1 end
end

local entries, bytes, last = {}, 0, low + tonumber(ARGV[3])
while low < last and low < length and bytes < tonumber(ARGV[4]) do
  for _, entry in ipairs(redis.call('LRANGE', JOURNAL_LOG, low, math.min(low + 16, last) - 1)) do
    entries[#entries + 1] = entry
    bytes, low = bytes + #entry, low + 1
  end
end
return {tonumber(state[2]), complete and 1 or 0, low < length and 1 or 0, entries}
