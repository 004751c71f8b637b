"""For schemathesis, which knows the server by its OpenAPI document alone: what a schema cannot say."""

import schemathesis

# A request may be held open, but not for as long as the fuzzer thinks of.
HELD_OPEN = {
    "acquire": "wait_ms",
    "acquire-all": "wait_ms",
    "change": "wait_ms",
    "renew": "park_ms",
    "together": "wait_ms",
}
MILLISECONDS = 20


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Changes what is asked as little as it takes; what the server has to refuse stays as it is."""
    case.body = whole(case.body)
    verb = case.operation.path.rsplit("/")[-1]
    if not isinstance(case.body, dict):
        return
    if field := HELD_OPEN.get(verb):
        time = case.body.get(field)
        if time is None or (type(time) is int and 0 <= time < 1 << 64):
            case.body[field] = min(time or 0, MILLISECONDS)
    questions = [case.body] if verb == "acquire-all" else []
    if verb == "together" and isinstance(case.body.get("questions"), list):
        asked = [each for each in case.body["questions"] if isinstance(each, dict)]
        questions = [each["acquire-all"] for each in asked if isinstance(each.get("acquire-all"), dict)]
    for question in questions:
        name_each_once(question.get("claims"))


def whole(value):
    """1.0 is an integer to JSON Schema, and a float to everybody else."""
    if isinstance(value, dict):
        return {key: whole(value) for key, value in value.items()}
    if isinstance(value, list):
        return [whole(value) for value in value]
    is_one = type(value) is float and value.is_integer() and abs(value) < 1 << 64
    return int(value) if is_one else value


def name_each_once(claims):
    seen = set()
    for claim in claims if isinstance(claims, list) else []:
        name = claim.get("name") if isinstance(claim, dict) else None
        if isinstance(name, str) and name in seen:
            claim["name"] = name = f"{name[:8]} {len(seen)}"
        if isinstance(name, str):
            seen.add(name)
