-- Most locks are released while nobody waits. One that this claim alone holds is given up here at once. In what we wrote, texts of
-- others have their quotes escaped: what is found here is ours.

local raw = #ARGV == 4 and ARGV[2] == '0' and redis.call('GET', KEYS[1])
if raw
    and raw:sub(1, #OURS) == OURS
    and raw:find('"mode":"exclusive"', 1, true)
    and raw:find('"id":"' .. ARGV[4] .. '"', 1, true)
    and redis.call('EXISTS', KEYS[2]) == 0
then
    redis.call('DEL', KEYS[1])
    announce_change()
    return {}
end
