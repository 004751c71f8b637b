-- One lock: who holds it, who stands in line, and how one becomes the other; the rules are those of core/src/record.rs.
-- Stands before each script that needs them.

-- Of a lock that was handed over, until its new holder says that it knows. One that has looked so lately, and hears us still, is let in
-- as one that lives: it need not say so, and if it is dead, that is found out as a holder's death is.
local TAKEN_UP_WITHIN, LATELY = 2000, 500
-- How often those look that might be next and are not told, if the next one is dead; and the others, so that they are known to live.
local LOOK_SOON, SOON, LOOK = 1000, 3, 5000
-- For how long a place stays after a look: for the claim's TTL, but no longer than this, since Redis may be away meanwhile, and asked
-- again only after a pause; and for a while after the next look is due.
local STAYS, SLACK = 8000, 3000
-- How often one looks whether a foreign client, which tells nobody, has let go.
local LOOK_AT_FOREIGN = 50

local time = micros(redis.call('TIME'))
-- In milliseconds.
local now = tonumber(time:sub(1, -4))

-- What we wrote; nothing for what somebody else did, however it looks.
local function read(text)
    local fine, value = pcall(cjson.decode, text)
    if not fine or type(value) ~= 'table' then
        return nil
    end
    return value
end

local function read_lock(text)
    local value = text:sub(1, #OURS) == OURS and read(text:sub(#OURS + 1))
    if not value or type(value.holders) ~= 'table' or type(value.upgrading) ~= 'boolean' then
        return nil
    end
    for _, held in ipairs(value.holders) do
        if type(held) ~= 'table' or type(held.id) ~= 'string' or type(held.ends) ~= 'number' then
            return nil
        end
    end
    return #value.holders > 0 and value
end

local raw = redis.call('GET', KEYS[1])
local ours = raw and read_lock(raw)
local lock = ours or { holders = {}, upgrading = false }
local foreign = raw and not ours
-- Whether who holds has changed, and whether anything that people see has.
local dirty, seen = false, false

local function holder(id)
    for at, held in ipairs(lock.holders) do
        if held.id == id then
            return held, at
        end
    end
end

local function waiter(id)
    local text = redis.call('HGET', KEYS[3], id)
    return text and read(text)
end

-- Whether claims of these modes can hold together, room for permits aside.
local function fit(one, other)
    return one == 'shared' and (other == 'shared' or other == 'upgradable')
        or one == 'upgradable' and other == 'shared'
        or one == 'permit' and other == 'permit'
end

-- Whether the release of a holder of one mode could help a waiter of the other.
local function compete(held, waits)
    return waits == 'permit' or not fit(held, waits)
end

-- Whether a claim of this mode could hold beside all that hold now.
local function admits(mode, limit)
    if foreign then
        return false
    end
    local least = limit
    for _, held in ipairs(lock.holders) do
        if not fit(held.mode, mode) or mode == 'shared' and lock.upgrading then
            return false
        end
        least = math.min(least, held.limit)
    end
    return mode ~= 'permit' or #lock.holders < least
end

local function tell(party, what)
    redis.call('PUBLISH', party.inbox, what)
end

-- Whether its connection is here and stands; in a Cluster it may be elsewhere.
local function hears(party)
    return redis.call('PUBSUB', 'NUMSUB', party.inbox)[2] > 0
end

-- Sees to it that the next token is greater than this one.
local function raise(floor)
    if less(redis.call('GET', KEYS[4]) or '0', floor) then
        redis.call('SET', KEYS[4], floor)
    end
end

-- A lease only ever grows.
local function extend(held, ttl)
    held.ends = math.max(held.ends, now + ttl)
    dirty = true
end

local function hold(party, ttl, floor)
    local held = {
        id = party.id,
        mode = party.mode,
        limit = party.limit,
        ttl = party.ttl,
        inbox = party.inbox,
        owner = party.owner,
        token = token(floor, time),
        since = now,
        ends = now + ttl,
        told = false,
    }
    table.insert(lock.holders, held)
    dirty, seen = true, true
    return held
end

local function take_holder(at)
    local held = table.remove(lock.holders, at)
    if held.mode == 'upgradable' then
        lock.upgrading = false
    end
    dirty, seen = true, true
    return held
end

local function lose(at, reason)
    local held = take_holder(at)
    tell(held, 'lost ' .. held.id .. ' ' .. reason)
    return held
end

local function leave(id)
    redis.call('HDEL', KEYS[3], id)
    local stood = redis.call('ZREM', KEYS[2], id) == 1
    seen = stood or seen
    return stood
end

-- The holders whose time is over, but for those that are about to be renewed.
local function run_out(spared)
    for at = #lock.holders, 1, -1 do
        local held = lock.holders[at]
        if held.ends <= now and not spared[held.id] then
            lose(at, 'expired')
        end
    end
end

local function promote(held, floor)
    lock.upgrading = false
    held.mode = 'exclusive'
    held.token = token(floor, time)
    extend(held, held.ttl)
    seen = true
end

-- Whether somebody waits whom this holder could help.
local function contended(held)
    if lock.upgrading and held.mode ~= 'upgradable' then
        return true
    end
    if held.mode == 'exclusive' or held.mode == 'permit' then
        return redis.call('EXISTS', KEYS[2]) == 1
    end
    for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
        local other = waiter(id)
        if other and compete(held.mode, other.mode) then
            return true
        end
    end
    return false
end

-- The terms of a holder, as it hears them.
local function holds(held)
    local waits = contended(held)
    if held.told ~= waits then
        held.told, dirty = waits, true
    end
    local words = { held.token, held.mode, held.limit, held.ttl, waits and 1 or 0, number(held.ends) }
    return table.concat(words, ' ')
end

-- Lets in whoever can be let in: the upgrade, once it is alone; else the leading claims of the queue that fit.
local function settle(floor)
    if lock.upgrading then
        if #lock.holders == 1 then
            promote(lock.holders[1], floor)
            tell(lock.holders[1], 'granted ' .. lock.holders[1].id)
        end
        return
    end
    local let_in = {}
    while true do
        local id = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
        local head = id and waiter(id)
        if not id then
            break
        elseif not head or head.alive <= now then
            leave(id)
        elseif admits(head.mode, head.limit) then
            leave(id)
            -- Whoever keeps a place may be gone for as long as it is kept, and takes it up when it comes back.
            local keeps = head.keep > 0 and head.alive - now or 0
            local lives = head.keep == 0 and now - (head.looked or 0) < LATELY and hears(head)
            local held = hold(head, lives and head.ttl or math.min(head.ttl, math.max(keeps, TAKEN_UP_WITHIN)), floor)
            table.insert(let_in, { held = held, look = lives and head.look })
            if head.mode == 'exclusive' then
                break
            end
        else
            break
        end
    end
    -- What each is told depends on who is left in line.
    for _, one in ipairs(let_in) do
        local more = one.look and ' ' .. one.look .. ' ' .. holds(one.held) or ''
        tell(one.held, 'granted ' .. one.held.id .. more)
    end
end

-- Tells the holders in somebody's way that somebody waits: each once, until nobody waits any more.
local function announce(first, in_the_way)
    for _, held in ipairs(lock.holders) do
        if (first or not held.told) and in_the_way(held.mode) then
            held.told, dirty = true, true
            tell(held, 'contended ' .. held.id)
        elseif first and held.told then
            held.told, dirty = false, true
        end
    end
end

-- Holders as JSON; a foreign one is `null`. The owners come as the JSON that they were told in.
local function holders_seen(held_by, and_foreign)
    local all = {}
    for _, held in ipairs(held_by) do
        table.insert(all, string.format(
            '{"owner":%s,"mode":"%s","limit":%d,"token":"%s","held":%s}',
            held.owner, held.mode, held.limit, held.token, number(math.max(now - held.since, 0))
        ))
    end
    if and_foreign then
        table.insert(all, 'null')
    end
    return '[' .. table.concat(all, ',') .. ']'
end

-- When the first of the leases is over that somebody waits for.
local function first_end()
    local first = now + LOOK
    for _, held in ipairs(lock.holders) do
        first = math.min(first, held.ends)
    end
    return math.max(first - now, 0) + 1
end

-- When a claim at this place looks again.
local function look_in(place)
    if foreign and place == 1 then
        return LOOK_AT_FOREIGN
    elseif place == 1 then
        return first_end()
    elseif place <= SOON then
        return LOOK_SOON
    end
    return LOOK
end

-- The keys of a queue live no longer than those who stand in it.
local function live(key, millis)
    if redis.call('PTTL', key) < millis then
        redis.call('PEXPIRE', key, millis)
    end
end

local function save()
    if dirty and not foreign then
        local last = 0
        for _, held in ipairs(lock.holders) do
            last = math.max(last, held.ends)
        end
        if last > 0 then
            redis.call('SET', KEYS[1], OURS .. cjson.encode(lock), 'PX', number(math.max(last - now, 1)))
        else
            redis.call('DEL', KEYS[1])
        end
    end
    if seen then
        announce_change()
    end
end
