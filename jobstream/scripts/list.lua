-- One page of jobs, newest first: by when they were created, and then by id. Walks the one index that a filter makes
-- smallest, and looks at the records for the rest.
-- ARGV  1 created (ms) and 2 id of the job behind which the page begins, '' for the first page
--       3 jobs at most   4 index entries to look at, at most
--       5 status   6 task   7 tag   8 owner ('': any)   9… words, all of which it must have
-- Returns {what is behind the page, created (ms), id, record, …}: 'end' nothing; 'more' at least one job; 'unknown' the
-- entries are used up. The next page begins behind that job.
local created, id = ARGV[1], ARGV[2]
local limit, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local status, task, tag, owner = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local words = {unpack(ARGV, 9)}

local rarest, least
for _, word in ipairs(words) do
  local count = redis.call('ZLEXCOUNT', INDEX_WORDS .. owner, '[' .. word .. ' ', '(' .. word .. '!')
  if not least or count < least then rarest, least = word, count end
end

-- With an owner none of all jobs is walked: its length would tell of others'.
local index
if owner ~= '' then
  index = status ~= '' and INDEX_OWNED .. status .. ' ' .. owner or INDEX_OWNER .. owner
  if rarest and redis.call('ZCARD', index) < least then rarest = nil end
else
  index = INDEX
  local fewest = redis.call('ZCARD', INDEX)
  for _, key in ipairs({status ~= '' and INDEX_STATUS .. status, task ~= '' and INDEX_TASK .. task, tag ~= '' and INDEX_TAG .. tag}) do
    if key then
      local count = redis.call('ZCARD', key)
      if count <= fewest then index, fewest = key, count end
    end
  end
  if rarest and fewest < least then rarest = nil end
end

-- The next entries, oldest last: {created, id, created, id, …}.
local entries
if rarest then
  local behind = created == '' and '(' .. rarest .. '!' or '(' .. rarest .. string.format(' %013.0f ', tonumber(created)) .. id
  entries = function()
    local found = redis.call('ZREVRANGEBYLEX', INDEX_WORDS .. owner, behind, '[' .. rarest .. ' ', 'LIMIT', 0, 100)
    local parsed = {}
    for _, member in ipairs(found) do
      parsed[#parsed + 1] = string.sub(member, #rarest + 2, #rarest + 14)
      parsed[#parsed + 1] = string.sub(member, #rarest + 16)
    end
    if found[1] then behind = '(' .. found[#found] end
    return parsed
  end
else
  local from = 0
  if created ~= '' then
    if tonumber(redis.call('ZSCORE', index, id) or -1) == tonumber(created) then
      from = redis.call('ZREVRANK', index, id) + 1
    else -- gone meanwhile: begin with those of its millisecond
      from = redis.call('ZCOUNT', index, '(' .. created, '+inf')
    end
  end
  entries = function()
    local found, parsed = redis.call('ZREVRANGE', index, from, from + 99, 'WITHSCORES'), {}
    from = from + 100
    for at = 1, #found, 2 do
      parsed[at], parsed[at + 1] = found[at + 1], found[at]
    end
    return parsed
  end
end

local function has_all(stored)
  for _, word in ipairs(words) do
    if not string.find(' ' .. (stored or '') .. ' ', ' ' .. word .. ' ', 1, true) then return false end
  end
  return true
end

local function admitted(record)
  local is = redis.call('HMGET', record, 'status', 'task', 'tags', 'owner', 'words')
  return is[1] and (status == '' or is[1] == status) and (task == '' or is[2] == task)
    and (tag == '' or string.find(' ' .. (is[3] or '') .. ' ', ' ' .. tag .. ' ', 1, true)) and (owner == '' or is[4] == owner)
    and has_all(is[5])
end

local answer, looked = {'', created, id}, 0
while looked < budget do
  local found = entries()
  if not found[1] then
    answer[1] = 'end'
    return answer
  end
  for at = 1, #found, 2 do
    local score, job = tonumber(found[at]), found[at + 1]
    -- Of the millisecond where the page before ended, what it has shown.
    local shown = not rarest and created ~= '' and score == tonumber(created) and job >= id
    if not shown then
      looked = looked + 1
      local record = RECORD .. job
      if admitted(record) then
        if #answer - 3 == limit then
          answer[1] = 'more'
          return answer
        end
        answer[#answer + 1] = redis.call('HGETALL', record)
      end
      answer[2], answer[3] = whole(score), job
    end
  end
end
answer[1] = 'unknown'
return answer
