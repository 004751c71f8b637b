-- Takes the lock from all holders, or from those with a token; a foreign one has the token 0.
--
-- ARGV[2..]  the token or nothing, token floor
-- Answers with whom it was taken from.

local only = ARGV[2]
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
return holders_seen(taken, from_foreign)
