-- Most locks are free when they are asked for. One that nobody holds or waits for, and of which nothing was called off of
-- late, is taken here at once; all that record.lua would do for it comes to the same.

if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[5]) == 0 then
    local micros = clock()
    local now = math.floor(micros / 1000)
    local ttl = tonumber(ARGV[6])
    local held = new_holder({
        id = ARGV[2],
        mode = ARGV[3],
        limit = tonumber(ARGV[4]),
        ttl = ttl,
        owner = ARGV[7],
        inbox = ARGV[8],
    }, token(tonumber(ARGV[10]), micros), now, ttl)
    write({ holders = { held }, upgrading = false }, ttl)
    announce_change()
    return granted(held, false)
end
