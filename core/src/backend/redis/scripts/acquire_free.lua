-- Most locks are free when they are asked for. One that nobody holds or waits for, and of which nothing was called off of
-- late, is taken here at once; all that record.lua would do for it comes to the same, and is written in the same words.

if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[5]) == 0 then
    local id, mode, limit, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
    local time = redis.call('TIME')
    local now = millis(time)
    local since, ends, fresh = number(now), number(now + ttl), token(ARGV[10], time)
    local held = '{"id":"%s","mode":"%s","limit":%s,"ttl":%s,"inbox":%s,"owner":%s,"token":"%s","since":%s,"ends":%s,"told":false}'
    held = held:format(id, mode, limit, ttl, cjson.encode(ARGV[8]), cjson.encode(ARGV[7]), fresh, since, ends)
    redis.call('SET', KEYS[1], OURS .. '{"holders":[' .. held .. '],"upgrading":false}', 'PX', ttl)
    announce_change()
    return 'granted ' .. fresh .. ' ' .. mode .. ' ' .. limit .. ' ' .. ttl .. ' 0 ' .. ends
end
