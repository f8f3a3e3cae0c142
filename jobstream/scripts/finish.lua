-- End jobs by the attempts that hold them, each for itself; `after` is after.lua.
-- ARGV  1 lifetime of arq's results (ms)
--       then of each job: id, token, queue's zset, status, result (JSON or ''), error (JSON or ''), arq's result
-- Returns of each job: 1, 0 when the attempt no longer holds it (a zombie's result is refused), or what went wrong.
even_when_full()
local now = now_ms()

local ended = {}
local function finish_by_holder(holder, id, token, queue, status, result, error, arq_result)
  if ended[id] or not holds(id, token, holder) then return 0 end
  ended[id] = true
  if tonumber(ARGV[1]) > 0 then redis.call('SET', ARQ_RESULT .. id, arq_result, 'PX', ARGV[1]) end
  if error == '' then
    finish_one(id, queue, status, now, 'result', result)
  elseif status ~= 'failed' then
    finish_one(id, queue, status, now, 'error', error)
  else
    local errors = redis.call('HGET', RECORD .. id, 'errors')
    finish_one(id, queue, status, now, 'error', error, 'errors', (errors and errors .. ',' or '') .. error)
  end
  return 1
end

local names, answer = {}, {}
for at = 2, #ARGV, 7 do names[#names + 1] = ARQ_IN_PROGRESS .. ARGV[at] end
for place, holder in ipairs(redis.call('MGET', unpack(names))) do
  local at = 7 * place - 5
  local fine, said = pcall(finish_by_holder, holder, unpack(ARGV, at, at + 6))
  answer[place] = fine and said or type(said) == 'table' and said.err or tostring(said)
end
do_gathered()
if ended_for_others[1] then after().settle(now) end
return answer
