"""Measures one Python lock library over a store, for the Rust bench beside it.

stores.py pairs PEER URL CLAIMS SECONDS
stores.py turns PEER URL WAITERS SECONDS HOLD

Prints one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

now = time.monotonic_ns

Named = Callable[[str], Any]


def windlass(url: str) -> Named:
    import windlass

    return windlass.connect(url).lock


def tooz(url: str) -> Named:
    from tooz import coordination

    coordinator = coordination.get_coordinator(url.replace("etcd:", "etcd3+http:"), b"bench")
    coordinator.start()
    return lambda name: coordinator.get_lock(name.encode())


def redis_py(url: str) -> Named:
    import redis

    client = redis.Redis.from_url(url)
    return lambda name: client.lock(name, timeout=10)


PEERS: dict[str, Callable[[str], Named]] = {"windlass": windlass, "tooz": tooz, "redis-py": redis_py}

# How often it looks, in seconds: it is released at any point of that.
POLLS = {"tooz": 1.0, "redis-py": 0.1}


def pairs(lock: Named, claims: int, seconds: float) -> dict[str, Any]:
    locks = [lock(f"bench-{claim}") for claim in range(claims)]

    def run(limit: float) -> tuple[int, float]:
        counts, start = [0] * claims, time.perf_counter()

        def work(claim: int) -> None:
            with locks[claim]:
                pass
            counts[claim] += 1

        each(claims, limit, work)
        return sum(counts), time.perf_counter() - start

    warm, _ = run(seconds / 4)
    total, elapsed = run(seconds)
    return {"pairs_per_s": total / elapsed, "pairs": warm + total}


def turns(locks: list[Any], seconds: float, hold: float, polls: float) -> dict[str, Any]:
    warm = now() + int(seconds * 1e9 / 4)
    end = time.perf_counter() + seconds
    # These belong to whoever holds the lock.
    released, last = 0, -1
    samples: list[int] = []

    def work(waiter: int) -> None:
        nonlocal released, last
        # Where they poll, who has just had the lock would be the first to look: it asks again when another has it.
        while polls and last == waiter and time.perf_counter() < end:
            time.sleep(0.001)
        asked = now()
        with locks[waiter]:
            last = waiter
            if max(asked, warm) < released:
                samples.append(now() - released)
            time.sleep(hold + random.random() * polls)
            released = now()

    each(len(locks), seconds, work)
    return {"samples_ns": samples}


# Does the work of each client again and again until the time is over.
def each(clients: int, seconds: float, work: Callable[[int], None]) -> None:
    end = time.perf_counter() + seconds
    failures: list[BaseException] = []

    def run(client: int) -> None:
        try:
            while time.perf_counter() < end:
                work(client)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def main() -> None:
    measure, peer, url, clients, seconds, *rest = sys.argv[1:]
    connect = PEERS[peer]
    if measure == "pairs":
        result = pairs(connect(url), int(clients), float(seconds))
    elif measure == "turns":
        locks = [connect(url)("turns") for _ in range(int(clients))]
        result = turns(locks, float(seconds), float(rest[0]), POLLS.get(peer, 0))
    else:
        sys.exit(f"unknown measure {measure}")
    print(json.dumps(result))


main()
