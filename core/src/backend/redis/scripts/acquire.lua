-- Takes the lock or a place in the queue. A claim that holds or waits already is known by its id, and stays what it is.
--
-- ARGV[2..]  id, mode, limit, entry (queue, try or steal), TTL, owner as JSON, inbox, for how long the place is kept,
--            a token that the next one must be greater than, the number of this look
-- Answers `granted TERMS`, `busy`, `waiting PLACE LOOK_IN HOLDERS`, or `over`: it was called off.

local party = {
    id = ARGV[2],
    mode = ARGV[3],
    limit = tonumber(ARGV[4]),
    ttl = tonumber(ARGV[6]),
    owner = ARGV[7],
    inbox = ARGV[8],
    keep = tonumber(ARGV[9]),
}
local entry, floor = ARGV[5], ARGV[10]

if redis.call('ZSCORE', KEYS[5], party.id) then
    return 'over'
end
run_out({ [party.id] = true })
settle(floor)

local function done(answer)
    save()
    return answer
end

local function steal()
    local at = 1
    while lock.holders[at] do
        if fit(lock.holders[at].mode, party.mode) then
            at = at + 1
        else
            lose(at, 'stolen')
        end
    end
    foreign = false
    while party.mode == 'permit' and not admits(party.mode, party.limit) do
        lose(1, 'stolen')
    end
    local held = hold(party, party.ttl, floor)
    settle(floor)
    return done('granted ' .. holds(held))
end

local held = holder(party.id)
if held then
    held.inbox = party.inbox
    extend(held, held.ttl)
    return done('granted ' .. holds(held))
end

local waits = waiter(party.id)
if entry == 'steal' then
    if waits then
        leave(party.id)
    end
    return steal()
end
if entry == 'try' and waits then
    -- Had it been possible, it would hold the lock by now.
    leave(party.id)
    settle(floor)
    return done('busy')
end
if not waits then
    if redis.call('EXISTS', KEYS[2]) == 0 and admits(party.mode, party.limit) then
        return done('granted ' .. holds(hold(party, party.ttl, floor)))
    elseif entry == 'try' then
        return done('busy')
    end
    local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
    announce(#last == 0 and not lock.upgrading, function(mode)
        return compete(mode, party.mode)
    end)
    redis.call('ZADD', KEYS[2], (last[2] or 0) + 1, party.id)
    party.since = now
    waits, seen = party, true
end

local place = redis.call('ZRANK', KEYS[2], party.id) + 1 + (lock.upgrading and 1 or 0)
local look = look_in(place)
waits.inbox, waits.keep = party.inbox, party.keep
waits.look, waits.looked = ARGV[11], now
-- It is kept from when whoever asked stopped to ask, which may be just before the next look.
local kept = waits.keep > 0 and look + waits.keep or 0
waits.alive = now + math.max(math.min(waits.ttl, STAYS), look + SLACK, kept)
redis.call('HSET', KEYS[3], party.id, cjson.encode(waits))
for _, key in ipairs({ KEYS[2], KEYS[3] }) do
    live(key, waits.alive - now)
end
return done(table.concat({ 'waiting', place, look, holders_seen(lock.holders, foreign) }, ' '))
