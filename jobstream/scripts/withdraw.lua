-- Used by the scripts of schedules: a tick that waits for its time will not come to pass. It may be wanted again, when
-- the schedule is resumed or an old one comes back: then its record makes room for a new one.
-- Arguments: id of its job, its queue's zset, now (ms), why (JSON)
local id, queue, now, why = ...
local about = redis.call('HMGET', RECORD .. id, 'status', 'queue', 'owner')
if about[1] ~= 'scheduled' and about[1] ~= 'queued' then return end
if redis.call('EXISTS', ARQ_IN_PROGRESS .. id) == 1 then return end -- a stock worker has begun it
redis.call('ZREM', PROMOTE .. about[2], id)
if about[3] then turns().leave(about[2], about[3], id, now) end
finish(id, queue, 'cancelled', now, 'error', why, 'withdrawn', '1')
if ended_for_others[1] then after().settle(now) end
