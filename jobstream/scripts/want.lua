-- Say that the journal is wanted: it begins anew when there is none, or when history forked.
-- ARGV  1 history: names the data as a whole   2 generation of a journal that begins   3 how long it lives (ms)
--       4 the generation that the caller knows, or ''   5 the last sequence number that the caller has seen of it
-- Returns {generation, its last sequence number}.
even_when_full()
local state = redis.call('HMGET', JOURNAL, 'generation', 'history', 'seq')
local went_back = state[1] == ARGV[4] and tonumber(state[3]) < tonumber(ARGV[5])
if state[2] ~= ARGV[1] or went_back then
  redis.call('DEL', JOURNAL, JOURNAL_LOG)
  redis.call('HSET', JOURNAL, 'generation', ARGV[2], 'history', ARGV[1], 'seq', 0, 'bytes', 0, 'floor', 0)
  state = {ARGV[2], ARGV[1], 0}
end
redis.call('PEXPIRE', JOURNAL, ARGV[3])
redis.call('PEXPIRE', JOURNAL_LOG, JOURNAL_LOG_LIFE)
return {state[1], tonumber(state[3])}
