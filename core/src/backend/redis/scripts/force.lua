-- Takes the lock from all holders, or from those with a token; a foreign one has the token 0.
--
-- ARGV[2..]  the token or nothing, token floor, a number that no other request has, for how long it may come again
-- Answers with whom it was taken from; when it comes again, with the same, and takes nothing.

local only, request, until_then = ARGV[2], ARGV[4] .. ' ', tonumber(ARGV[5])
for _, done in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    if done:sub(1, #request) == request then
        return done:sub(#request + 1)
    end
end
run_out({})
local taken = {}
for at = #lock.holders, 1, -1 do
    if only == '' or lock.holders[at].token == only then
        table.insert(taken, 1, lose(at, 'force_released'))
    end
end
local from_foreign = foreign and (only == '' or only == '0')
if from_foreign then
    redis.call('DEL', KEYS[1])
    foreign, seen = false, true
end
settle(ARGV[3])
save()
local answer = holders_seen(taken, from_foreign)
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
redis.call('ZADD', KEYS[5], now + until_then, request .. answer)
live(KEYS[5], until_then)
return answer
