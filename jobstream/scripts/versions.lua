-- The versions of many jobs.
-- ARGV  their ids
-- Returns {version, …}, false for those that have no record.
local versions = {}
for at, id in ipairs(ARGV) do versions[at] = redis.call('HGET', RECORD .. id, 'version') end
return versions
