"""For schemathesis, which knows the server by its OpenAPI document alone: what a schema cannot say."""

import schemathesis

LONGEST_NAME = 1024


@schemathesis.hook
def before_call(context, case, kwargs):
    """Changes what is asked as little as it takes; what the server has to refuse stays as it is."""
    if isinstance(case.body, dict):
        case.body = tidy(case.body)


def tidy(body):
    body = {field: whole(value) for field, value in body.items()}
    # A request may be held open, but not for long.
    for field, most in (("wait_ms", 20), ("park_ms", 20)):
        time = body.get(field)
        if time is None or (type(time) is int and 0 <= time < 1 << 64):
            body[field] = min(time or 0, most)
    return body


def whole(value):
    """1.0 is an integer to JSON Schema, and a float to everybody else."""
    return int(value) if type(value) is float and value.is_integer() else value
