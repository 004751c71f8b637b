-- What is written in a lock's keys and sent to people, for all scripts; stands before each.
--
-- KEYS[1]  the lock: who holds it, as long as somebody does. Lives as long as the longest lease, so that foreign clients that
--          `SET NX` the same key are kept out and the dead let them in.
-- KEYS[2]  the queue: a sorted set of claim ids by the number of their coming
-- KEYS[3]  the claims in it: a hash from claim id to JSON
-- KEYS[4]  the last fencing token
-- KEYS[5]  claims that were called off while their request was under way: a sorted set by when that may be forgotten
-- ARGV[1]  the channel for those who watch locks
--
-- What is sent to a claim's inbox is `granted ID`, `contended ID` or `lost ID REASON`. One that is let in as one that lives is told
-- all that its look would be: `granted ID LOOK TOKEN MODE LIMIT TTL CONTENDED ENDS`, with the number of its last look.

local OURS = 'windlass '

local function number(n)
    return string.format('%.0f', n)
end

-- The time in microseconds.
local function clock()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

-- A fencing token: greater than all before, and than the time, so that a server that has lost its last ones still gives greater
-- ones.
local function token(floor, micros)
    local fresh = math.max(micros, floor + 1)
    local last = tonumber(redis.call('SET', KEYS[4], number(fresh), 'GET') or '0')
    if last >= fresh then
        fresh = last + 1
        redis.call('SET', KEYS[4], number(fresh))
    end
    return number(fresh)
end

-- Who holds from now on.
local function new_holder(party, fencing_token, now, ttl)
    return {
        id = party.id,
        mode = party.mode,
        limit = party.limit,
        ttl = party.ttl,
        inbox = party.inbox,
        owner = party.owner,
        token = fencing_token,
        since = now,
        ends = now + ttl,
        told = false,
    }
end

local function granted(held, waits)
    return { 'granted', held.token, held.mode, held.limit, held.ttl, waits and 1 or 0, number(held.ends) }
end

local function write(lock, millis)
    redis.call('SET', KEYS[1], OURS .. cjson.encode(lock), 'PX', number(millis))
end

-- Who watches locks is told that something has changed.
local function announce_change()
    redis.call('PUBLISH', ARGV[1], KEYS[1])
end
