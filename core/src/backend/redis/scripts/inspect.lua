-- Who holds and who waits, as JSON, and when the first of them may be gone, in milliseconds from now (negative: never); changes
-- nothing. Nothing, where no lock is: a key of somebody else is one only if somebody of ours waits for it.

local first = foreign and redis.call('PTTL', KEYS[1]) or -1

local function ends(at)
    first = first < 0 and at - now or math.min(first, at - now)
end

local waits = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local party = waiter(id)
    if party and party.alive > now then
        ends(party.alive)
        table.insert(waits, string.format(
            '{"owner":%s,"mode":"%s","limit":%d,"waited":%s}',
            party.owner, party.mode, party.limit, number(math.max(now - party.since, 0))
        ))
    end
end
local held = {}
for _, party in ipairs(lock.holders) do
    if party.ends > now then
        ends(party.ends)
        table.insert(held, party)
    end
end
if #waits == 0 and #held == 0 then
    return false
end
return { holders_seen(held, foreign), '[' .. table.concat(waits, ',') .. ']', first }
