-- Lets holders live for their TTL more.
--
-- ARGV[2..]  inbox, token floor, the token that several servers have agreed on or nothing, ids
-- Answers for each id as acquire.lua does for one that holds, or `gone NOW`.

local spared, answers = {}, {}
for at = 5, #ARGV do
    spared[ARGV[at]] = true
end
raise(ARGV[3])
run_out(spared)
settle(ARGV[3])
for at = 5, #ARGV do
    local held = holder(ARGV[at])
    if held then
        held.inbox = ARGV[2]
        held.token = ARGV[4] ~= '' and ARGV[4] or held.token
        extend(held, held.ttl)
        table.insert(answers, 'granted ' .. holds(held))
    else
        table.insert(answers, 'gone ' .. number(now))
    end
end
save()
return answers
