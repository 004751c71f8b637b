"""Drives redis-py's Lock by lines on standard input; answers each with a line, as ../redis does.

peer.py ADDRESS
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Callable

import redis
from redis.exceptions import LockError
from redis.lock import Lock

# Of a lock, by its id.
locks: dict[str, Lock] = {}
host, _, port = sys.argv[1].rpartition(":")
client = redis.Redis(host=host, port=int(port))


def main() -> None:
    threading.excepthook = fail
    client.ping()
    say("ready")
    for line in sys.stdin:
        command, *words = line.split()
        threading.Thread(target=COMMANDS[command], args=words, daemon=True).start()


def lock(held_id: str, key: str, millis: str) -> None:
    take(held_id, key, millis, waits=True)


def attempt(held_id: str, key: str, millis: str) -> None:
    take(held_id, key, millis, waits=False)


def take(held_id: str, key: str, millis: str, *, waits: bool) -> None:
    # Without end if told so, as it is unless told otherwise.
    made = lock_of(key, int(millis) / 1000 if millis != "0" else None)
    if made.acquire(blocking=waits):
        locks[held_id] = made
        say(f"acquired {held_id}")
    else:
        say(f"busy {held_id}")


def extend(held_id: str, millis: str) -> None:
    tell(held_id, "extended", lambda held: held.extend(int(millis) / 1000, replace_ttl=True))


def unlock(held_id: str) -> None:
    tell(held_id, "released", lambda held: held.release())


def tell(held_id: str, done: str, what: Callable[[Lock], object]) -> None:
    try:
        what(locks[held_id])
    except LockError:
        done = "lost"
    say(f"{done} {held_id}")


def count(held_id: str, key: str, times: str, file: str) -> None:
    for _ in range(int(times)):
        with lock_of(key, 30):
            number = Path(file)
            number.write_text(str(int(number.read_text()) + 1))
    say(f"counted {held_id}")


def lock_of(key: str, timeout: float | None) -> Lock:
    return client.lock(key, timeout=timeout, sleep=0.01, thread_local=False)


def fail(failure: threading.ExceptHookArgs) -> None:
    say(f"error {failure.exc_value!r}")
    os._exit(1)


def say(line: str) -> None:
    # One write, because threads share it.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


COMMANDS = {"lock": lock, "try": attempt, "extend": extend, "unlock": unlock, "count": count}


if __name__ == "__main__":
    main()
