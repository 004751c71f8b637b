"""One table of cases, run against the classes of threading and ours: they must do the same."""

from __future__ import annotations

import threading

import pytest
from conftest import in_thread

import windlass


def outcome(action):
    try:
        return action()
    except Exception as error:
        kinds = (RuntimeError, ValueError, OverflowError, TypeError)
        return [kind.__name__ for kind in kinds if isinstance(error, kind)]


def same(theirs, ours):
    """What ours raises is at least what theirs raises."""
    if isinstance(theirs, list) and isinstance(ours, list):
        return set(theirs) <= set(ours) or theirs == ours
    return theirs == ours


CASES = {
    "acquire": lambda lock: [lock.acquire()],
    "acquire, positional": lambda lock: [lock.acquire(True, 1)],
    "try": lambda lock: [lock.acquire(False), in_thread(lock.acquire, False)()],
    "blocking=0": lambda lock: [lock.acquire(blocking=0), in_thread(lambda: lock.acquire(blocking=0))()],
    "timeout": lambda lock: [lock.acquire(), in_thread(lambda: lock.acquire(timeout=0.01))()],
    "timeout=0": lambda lock: [lock.acquire(), in_thread(lambda: lock.acquire(timeout=0))()],
    "timeout and no blocking": lambda lock: [outcome(lambda: lock.acquire(False, 1))],
    "timeout 0 and no blocking": lambda lock: [outcome(lambda: lock.acquire(False, 0))],
    "timeout=-2": lambda lock: [outcome(lambda: lock.acquire(timeout=-2))],
    "timeout=nan": lambda lock: [outcome(lambda: lock.acquire(timeout=float("nan")))],
    "timeout too large": lambda lock: [outcome(lambda: lock.acquire(timeout=1e100))],
    "timeout no number": lambda lock: [outcome(lambda: lock.acquire(timeout="1"))],
    "release unheld": lambda lock: [outcome(lock.release)],
    "release twice": lambda lock: [lock.acquire(), lock.release(), outcome(lock.release)],
    "release gives None": lambda lock: [lock.acquire(), lock.release()],
    "release inside with": lambda lock: [
        outcome(lambda: lock.__enter__() and None),
        lock.release(),
        outcome(lambda: lock.__exit__(None, None, None)),
    ],
    "with": lambda lock: [bool(lock.__enter__()), lock.__exit__(None, None, None), lock.acquire(False)],
    "body raises": lambda lock: [body_raises(lock), lock.acquire(False)],
    "threads": lambda lock: [in_thread(hammer, lock)(), lock.acquire(False)],
}

ONLY_FOR_LOCKS = {
    "release by another thread": lambda lock: [lock.acquire(), in_thread(lock.release)(), lock.acquire(False)],
    "locked": lambda lock: [lock.locked(), lock.acquire(), lock.locked(), lock.release(), lock.locked()],
    "wakes the waiter": lambda lock: [lock.acquire(), wakes(lock)],
}

ONLY_FOR_RLOCKS = {
    "again": lambda lock: [lock.acquire(), lock.acquire(), lock.release(), in_thread(lock.acquire, False)()],
    "as often": lambda lock: [
        lock.acquire(), lock.acquire(), lock.release(), lock.release(), outcome(lock.release),
        in_thread(lambda: lock.acquire(False))(),
    ],
    "another thread": lambda lock: [lock.acquire(), in_thread(lambda: outcome(lock.release))(), lock.release()],
    "nested with": lambda lock: [nested(lock), in_thread(lambda: lock.acquire(False))()],
}  # fmt: skip

FOR_SEMAPHORES = {
    "two": lambda gate: [gate.acquire(), gate.acquire(), gate.acquire(blocking=False)],
    "timeout": lambda gate: [gate.acquire(), gate.acquire(), gate.acquire(timeout=0.01)],
    "timeout=0": lambda gate: [gate.acquire(), gate.acquire(timeout=0), gate.acquire(timeout=0)],
    "timeout=-1": lambda gate: [gate.acquire(), gate.acquire(), gate.acquire(timeout=-1)],
    "timeout=None": lambda gate: [gate.acquire(True, None)],
    "timeout and no blocking": lambda gate: [outcome(lambda: gate.acquire(False, 1))],
    "release too often": lambda gate: [outcome(gate.release)],
    "release twice": lambda gate: [gate.acquire(), gate.release(), outcome(gate.release)],
    "release two": lambda gate: [gate.acquire(), gate.acquire(), gate.release(2), gate.acquire(False)],
    "release too many": lambda gate: [gate.acquire(), outcome(lambda: gate.release(2)), gate.release()],
    "release none": lambda gate: [gate.acquire(), outcome(lambda: gate.release(0))],
    "release by another thread": lambda gate: [
        gate.acquire(),
        gate.acquire(),
        in_thread(gate.release)(),
        gate.acquire(False),
    ],
    "with": lambda gate: [
        body_raises(gate),
        nested(gate),
        gate.acquire(False),
        gate.acquire(False),
        gate.acquire(False),
    ],
}


def body_raises(lock):
    try:
        with lock:
            raise LookupError
    except LookupError:
        return "raised"


def nested(lock):
    with lock, lock:
        return "inside"


def hammer(lock):
    total = [0]

    def work():
        for _ in range(20):
            with lock:
                total[0] += 1

    for result in [in_thread(work) for _ in range(3)]:
        result()
    return total


def wakes(lock):
    begun = threading.Event()

    def wait():
        begun.set()
        return lock.acquire(timeout=60)

    result = in_thread(wait)
    begun.wait()
    lock.release()
    return result()


def cases(*tables):
    return [pytest.param(case, id=name) for table in tables for name, case in table.items()]


@pytest.mark.parametrize("case", cases(CASES, ONLY_FOR_LOCKS))
def test_lock(locker, case):
    compare(case, threading.Lock(), locker.lock("a"))


@pytest.mark.parametrize("case", cases(CASES, ONLY_FOR_RLOCKS))
def test_rlock(locker, case):
    compare(case, threading.RLock(), locker.rlock("a"))


@pytest.mark.parametrize("case", cases(FOR_SEMAPHORES))
def test_semaphore(locker, case):
    compare(case, threading.BoundedSemaphore(2), locker.semaphore("a", 2))


def compare(case, theirs, ours):
    expected, actual = case(theirs), case(ours)
    assert len(expected) == len(actual)
    for their, our in zip(expected, actual):
        assert same(their, our), (expected, actual)


def test_a_lost_rlock_is_not_entered_again(locker):
    lock = locker.rlock("a")
    with pytest.raises(windlass.LockLost), lock as held:
        locker.force_release("a")
        held.wait_lost()
        with pytest.raises(windlass.LockLost):
            lock.acquire()
