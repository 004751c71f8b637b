-- Changes the mode of a holder in place.
--
-- ARGV[2..]  id, new mode, inbox, token floor, a number that grows from change to change of this inbox
-- Answers as acquire.lua does, `over` if it comes after a later one, `refused MODE` with the mode that cannot become the new one, or `gone NOW`.

local id, to, floor = ARGV[2], ARGV[3], ARGV[5]
run_out({ [id] = true })
settle(floor)
local held = holder(id)
if not held then
    save()
    return 'gone ' .. number(now)
end
local inbox, change = ARGV[4], tonumber(ARGV[6])
if held.changed_by == inbox and held.change > change then
    -- It comes late: who asked for it has asked for something else since.
    save()
    return 'over'
end
held.inbox, held.changed_by, held.change = inbox, inbox, change
local from = held.mode
if from == 'upgradable' and to == 'exclusive' then
    extend(held, held.ttl)
    if #lock.holders > 1 then
        if not lock.upgrading then
            lock.upgrading, seen = true, true
            announce(redis.call('EXISTS', KEYS[2]) == 0, function(mode)
                return mode ~= 'upgradable'
            end)
        end
        local others = {}
        for _, other in ipairs(lock.holders) do
            if other.id ~= id then
                table.insert(others, other)
            end
        end
        save()
        return table.concat({ 'waiting', 1, first_end(), holders_seen(others, false) }, ' ')
    end
    promote(held, floor)
elseif from == to or from == 'exclusive' and (to == 'upgradable' or to == 'shared') or from == 'upgradable' and to == 'shared' then
    if from == 'upgradable' then
        lock.upgrading = false
    end
    held.mode, seen = to, true
    extend(held, held.ttl)
    settle(floor)
else
    save()
    return 'refused ' .. from
end
local answer = 'granted ' .. holds(held)
save()
return answer
