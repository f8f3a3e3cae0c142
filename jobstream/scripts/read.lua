-- Read a job's record and its log behind a version, at one moment.
-- ARGV  1 id   2 version behind which the log is wanted   3 how many entries at most (0: all)
-- Returns {record, {entry, …}, the log's first entry or false}.
local id, after, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local log = LOG .. id
local version = tonumber(redis.call('HGET', RECORD .. id, 'version') or 0)
local length = redis.call('LLEN', log)
-- Versions rise by one, and progress is not in the log: what is wanted is among the last `version - after` entries.
local at, entries = math.max(0, length - math.max(0, version - after)), {}
while at < length and (limit == 0 or #entries < limit) do
  for _, entry in ipairs(redis.call('LRANGE', log, at, at + 199)) do
    if tonumber(string.match(entry, '^%d+')) > after and (limit == 0 or #entries < limit) then
      entries[#entries + 1] = entry
    end
  end
  at = at + 200
end
return {redis.call('HGETALL', RECORD .. id), entries, redis.call('LINDEX', log, 0)}
