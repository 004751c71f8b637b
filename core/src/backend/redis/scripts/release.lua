-- Ends claims, held or waiting, and hands the lock to whoever is next.
--
-- ARGV[2..]  for how long to keep out requests of these claims that may still be under way (0: there are none), token floor, ids
-- Answers with the ids of those that neither held nor waited.

local until_then, gone = tonumber(ARGV[2]), {}
for at = 4, #ARGV do
    local id = ARGV[at]
    local _, place = holder(id)
    if place then
        take_holder(place)
    elseif not leave(id) then
        table.insert(gone, id)
    end
    if until_then > 0 then
        redis.call('ZADD', KEYS[5], now + until_then, id)
        live(KEYS[5], until_then)
    end
end
if until_then > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
end
run_out({})
settle(ARGV[3])
save()
return gone
