-- Most locks are free when they are asked for. One that nobody holds or waits for, and of which nothing was called off of
-- late, is taken here at once; all that record.lua would do for it comes to the same, and is written in the same words.

if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[5]) == 0 then
    local id, mode, limit, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
    local time = micros(redis.call('TIME'))
    local since, fresh = time:sub(1, -4), token(ARGV[10], time)
    local ends = number(since + ttl)
    local held = '%s{"holders":[{"id":"%s","mode":"%s","limit":%s,"ttl":%s,"inbox":%s,"owner":%s,"token":"%s","since":%s,"ends":%s,'
        .. '"told":false}],"upgrading":false}'
    local inbox, owner = cjson.encode(ARGV[8]), cjson.encode(ARGV[7])
    redis.call('SET', KEYS[1], held:format(OURS, id, mode, limit, ttl, inbox, owner, fresh, since, ends), 'PX', ttl)
    announce_change()
    return 'granted ' .. fresh .. ' ' .. mode .. ' ' .. limit .. ' ' .. ttl .. ' 0 ' .. ends
end
