-- Used by submit and submit_many: store one new job and put it on its queue: record, log, indexes, arq's keys and event.
-- Arguments: now (ms), add (a function that adds a member to a zset: key, score, member), `enter` (turns.lua has it, for
-- jobs with an owner), the queue's zset, id, queue's name, task, payload, delay (ms), run at (ms, 0: now), how long it may wait (ms), tags, separated by spaces, and from
-- where to where in ARGV more fields of the record are: name, value, …
-- Returns when it is due (ms). The wake-up is the caller's.
local now, add, enter, queue, id, queue_name, task, payload, delay, run_at, live, tags, from, to = ...
local record, created_at = RECORD .. id, whole(now)
local due = math.max(now + tonumber(delay), tonumber(run_at))
local status = due > now and 'scheduled' or 'queued'
local first = event_text(1, 'status', status_data(status, 0), now)
-- What is asked for most comes first: Redis looks through a small hash from its front.
redis.call('HSET', record, 'status', status, 'version', '1', 'log_bytes', whole(#first), 'created_at', created_at, 'task', task,
  'attempt', '0', 'tags', tags, 'id', id, 'queue', queue_name, unpack(ARGV, from, to))
local priority, owner, words, batch = 0, nil, nil, nil
for at = from, to, 2 do
  if ARGV[at] == 'priority' then priority = tonumber(ARGV[at + 1]) end
  if ARGV[at] == 'owner' then owner = ARGV[at + 1] end
  if ARGV[at] == 'words' then words = ARGV[at + 1] end
  if ARGV[at] == 'batch' then batch = ARGV[at + 1] end
end
if due > now then
  redis.call('HSET', record, 'run_at', whole(due))
  add(queue, whole(due), id)
  if priority ~= 0 and not owner then add(PROMOTE .. queue_name, whole(due), id) end
elseif owner then
  enter(queue_name, owner, id, due, priority, now, add)
else
  add(queue, whole(score(due, priority)), id)
end
local wait = due - now + tonumber(live)
redis.call('SET', ARQ_JOB .. id, payload, 'PX', whole(wait))
add(INDEX_STATUS .. status, created_at, id)
add(INDEX, created_at, id)
add(INDEX_TASK .. task, created_at, id)
for tag in string.gmatch(tags, '[^ ]+') do add(INDEX_TAG .. tag, created_at, id) end
if owner then
  add(INDEX_OWNER .. owner, created_at, id)
  add(INDEX_OWNED .. status .. ' ' .. owner, created_at, id)
end
if words then
  for _, member in ipairs(word_members(id, words, created_at)) do
    add(INDEX_WORDS, 0, member)
    if owner then add(INDEX_WORDS .. owner, 0, member) end
  end
end
tell(id, first, 'status', 0, '-')
local deadline = whole(now + wait)
redis.call('PEXPIREAT', record, deadline)
redis.call('PEXPIREAT', LOG .. id, deadline)
add(EXPIRY, deadline, expiry_member(id, task, tags, owner, words, batch))
return due
