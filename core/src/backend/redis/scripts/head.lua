-- What is written in a lock's keys and sent to people, for all scripts; stands before each.
--
-- KEYS[1]  the lock: who holds it, as long as somebody does. Lives as long as the longest lease, so that foreign clients that
--          `SET NX` the same key are kept out and the dead let them in.
-- KEYS[2]  the queue: a sorted set of claim ids by the number of their coming
-- KEYS[3]  the claims in it: a hash from claim id to JSON
-- KEYS[4]  the last fencing token
-- KEYS[5]  claims that were called off while their request was under way, and releases by force with what they answered: a sorted
--          set by when that may be forgotten
-- ARGV[1]  the channel for those who watch locks
--
-- Answers and messages are words. What is sent to a claim's inbox is `granted ID`, `contended ID` or `lost ID REASON`. One that is let
-- in as one that lives is told all that its look would be, with the number of its last one: `granted ID LOOK TERMS`.
-- TERMS are `TOKEN MODE LIMIT TTL CONTENDED ENDS`.

local OURS = 'windlass '

local function number(n)
    return string.format('%.0f', n)
end

-- What TIME says, in microseconds. It stays a text, as tokens do: that is quicker than to make numbers of them and texts again.
local function micros(time)
    return time[1] .. ('00000' .. time[2]):sub(-6)
end

local function less(one, other)
    return #one < #other or #one == #other and one < other
end

-- A fencing token: greater than all before, and than the time in microseconds, so that a server that has lost its last ones still
-- gives greater ones.
local function token(floor, time)
    local fresh = less(floor, time) and time or number(floor + 1)
    local last = redis.call('SET', KEYS[4], fresh, 'GET') or '0'
    if not less(last, fresh) then
        fresh = number(last + 1)
        redis.call('SET', KEYS[4], fresh)
    end
    return fresh
end

-- Who watches locks is told that something has changed.
local function announce_change()
    redis.call('PUBLISH', ARGV[1], KEYS[1])
end
