"""Measures one Python lock library, for the Rust bench beside it.

peer.py pairs   PEER DIR SECONDS
peer.py turns   PEER DIR SECONDS MAX_HOLD_MS ID
peer.py contend PEER DIR SECONDS ID

Prints one line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIN_HOLD = 0.002
GLANCE = 0.0005

# The words of the memory that the processes of one measure share.
STOP, RELEASED, RELEASER, TURNS, COUNTER, START, READY = 0, 1, 2, 3, 8, 9, 16

now = time.monotonic_ns


class Flock:
    """Bare fcntl.flock, with or without opening the file each time."""

    def __init__(self, path: Path, *, reopen: bool) -> None:
        self.path = str(path)
        self.reopen = reopen
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def __enter__(self) -> None:
        if self.reopen:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self.reopen:
            os.close(self.fd)
        else:
            fcntl.flock(self.fd, fcntl.LOCK_UN)


def windlass(directory: Path) -> Any:
    import windlass

    return windlass.connect(f"file://{directory}").lock("bench")


def filelock(directory: Path) -> Any:
    import filelock

    return filelock.FileLock(directory / "filelock")


def portalocker(directory: Path) -> Any:
    import portalocker

    return portalocker.Lock(directory / "portalocker", timeout=3600)


def fasteners(directory: Path) -> Any:
    import fasteners

    return fasteners.InterProcessLock(directory / "fasteners")


PEERS: dict[str, Callable[[Path], Any]] = {
    "windlass": windlass,
    "filelock": filelock,
    "portalocker": portalocker,
    "fasteners": fasteners,
    "flock-open": lambda directory: Flock(directory / "flock", reopen=True),
    "flock": lambda directory: Flock(directory / "flock", reopen=False),
    "threading": lambda _: threading.Lock(),
}


def pairs(lock: Any, seconds: float) -> dict[str, Any]:
    def run(limit: float) -> float:
        count, start = 0, time.perf_counter()
        while True:
            for _ in range(100):
                with lock:
                    pass
            count += 100
            if (elapsed := time.perf_counter() - start) >= limit:
                return count / elapsed

    run(seconds / 4)
    return {"pairs_per_s": run(seconds)}


def turns(lock: Any, slots: memoryview, seconds: float, max_hold: float, me: int) -> dict[str, Any]:
    other = 1 - me
    deadline = now() + int(seconds * 1e9)
    samples: list[int] = []
    while not slots[STOP]:
        seen = slots[TURNS + other]
        asked = now()
        with lock:
            got = now()
            released = slots[RELEASED]
            waited = slots[RELEASER] == other + 1 and asked + MIN_HOLD * 1e9 / 4 < released
            slots[TURNS + me] += 1
            if not slots[STOP] and waited:
                samples.append(got - released)
            time.sleep(MIN_HOLD + random.random() * max_hold)
            if now() > deadline:
                slots[STOP] = 1
            slots[RELEASER] = me + 1
            slots[RELEASED] = now()
        while not slots[STOP] and slots[TURNS + other] == seen:
            time.sleep(GLANCE)
            if now() > deadline:
                slots[STOP] = 1
    return {"samples_ns": samples}


def contend(lock: Any, slots: memoryview, seconds: float, me: int) -> dict[str, Any]:
    slots[READY + me] = 1
    while not slots[START]:
        time.sleep(GLANCE)
    deadline = slots[START] + int(seconds * 1e9)
    served = total = 0
    while now() < deadline:
        with lock:
            slots[COUNTER] += 1
        total += 1
        if now() < deadline:
            served += 1
    return {"served": served, "total": total}


def shared(directory: Path) -> memoryview:
    with (directory / "shared").open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 512)).cast("Q")


def main() -> None:
    measure, peer, directory, seconds, *rest = sys.argv[1:]
    path = Path(directory)
    lock = PEERS[peer](path)
    if measure == "pairs":
        result = pairs(lock, float(seconds))
    elif measure == "turns":
        result = turns(lock, shared(path), float(seconds), float(rest[0]) / 1000, int(rest[1]))
    elif measure == "contend":
        result = contend(lock, shared(path), float(seconds), int(rest[0]))
    else:
        sys.exit(f"unknown measure {measure}")
    print(json.dumps(result))


main()
