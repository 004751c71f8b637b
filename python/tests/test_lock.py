"""Taking, holding and giving back, on every backend."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import uuid
import weakref
from contextlib import contextmanager, suppress

import pytest
from conftest import PATIENCE, in_thread, innermost, longer_until, until, waiters

import windlass
from windlass._errors import call_all


def test_with_gives_a_held_lock(locker):
    with locker.lock("a") as held:
        assert isinstance(held, windlass.Held)
        assert (held.name, held.mode, held.is_held(), held.lost) == ("a", "exclusive", True, None)
        assert held.fencing_token > 0
        assert held.held_for >= 0
        held.check()
        assert "fencing_token=" in repr(held)
        assert [status.name for status in locker.list("a")] == ["a"]
    assert not held.is_held()
    with pytest.raises(windlass.NotHeld):
        held.check()
    assert locker.list() == []


def test_of_several_failures_a_loss_is_raised():
    made = []

    def call(error):
        def fails():
            made.append(error)
            raise error

        return fails

    lost = windlass.LockLost("lost")
    with pytest.raises(windlass.LockLost):
        call_all(map(call, [windlass.Unavailable("away"), lost, windlass.LockLost("later")]))
    assert made[1] is lost
    assert len(made) == 3


def test_a_backend_without_fencing_tokens(server):
    with windlass.connect(f"lockgate+{server}/{uuid.uuid4()}/locker") as locker:
        assert not locker.capabilities()["fencing_token"]
        with locker.lock("a", timeout=PATIENCE) as held:
            with pytest.raises(windlass.Unsupported, match="fencing tokens"):
                held.fencing_token
            assert held.is_held()
            assert "fencing_token" not in repr(held)


def test_fencing_tokens_grow(locker):
    tokens = []
    for _ in range(5):
        with locker.lock("a") as held:
            tokens.append(held.fencing_token)
    assert tokens == sorted(set(tokens))


def test_with_raises_when_not_taken_and_says_who_holds(locker):
    with locker.lock("a", owner="ann", metadata={"job": "7"}):
        for timeout in longer_until(lambda: caught.value.waiting):
            with pytest.raises(windlass.Timeout) as caught, locker.lock("a", timeout=timeout):
                pytest.fail("the body ran")
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert error.lock == "a"
    assert error.backend == locker.url
    holder = error.waiting.holders[0]
    assert (holder.owner, holder.mode, holder.metadata) == ("ann", "exclusive", {"job": "7"})
    assert "ann" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.waiting, copy.lock) == (windlass.Timeout, str(error), error.waiting, "a")
    assert locker.list() == []
    with locker.lock("a"):
        try:
            raise LookupError
        except LookupError as handled:
            with pytest.raises(windlass.Timeout) as caught, locker.lock("a", timeout=0):
                pytest.fail("the body ran")
            assert caught.value.__context__ is handled


def test_nested_with_of_one_shared_lock_object(locker):
    lock = locker.lock("a", mode="shared")
    with lock as outer, lock as inner:
        assert outer is not inner
        assert lock.held is inner
        assert len(locker.list()[0].holders) == 2
    assert lock.held is None


def test_threads_share_a_lock_object(locker):
    lock = locker.lock("a")
    inside, most, total = [], [], [0]

    def work():
        for _ in range(50):
            with lock as held:
                inside.append(held)
                most.append(len(inside))
                total[0] += 1
                inside.remove(held)

    for result in [in_thread(work) for _ in range(4)]:
        result()
    assert (max(most), total[0]) == (1, 200)


def test_release_by_another_thread(locker):
    lock = locker.lock("a")
    assert lock.acquire()
    in_thread(lock.release)()
    assert not lock.locked()


def test_release_inside_with_ends_it(locker):
    lock = locker.lock("a")
    with pytest.raises(windlass.NotHeld), lock:
        lock.release()
    with lock as held:
        held.release()
        assert not lock.locked()


def test_locked_tells_of_everybody(locker):
    mine, theirs = locker.lock("a"), locker.lock("a")
    assert not theirs.locked()
    with mine:
        assert mine.locked()
        assert theirs.locked()
        assert not locker.lock("ab").locked()
    gate = locker.semaphore("s", 2)
    with gate:
        assert not gate.locked()
        with gate:
            assert gate.locked()


def test_lost_inside_with_raises_on_leaving(locker):
    with pytest.raises(windlass.LockLost) as caught, locker.lock("a") as held:
        assert [each.fencing_token for each in locker.force_release("a")] == [held.fencing_token]
        assert held.wait_lost() == "force_released"
        assert held.lost == "force_released"
        assert not held.is_held()
        with pytest.raises(windlass.LockLost):
            held.check()
    assert caught.value.reason == "force_released"
    assert caught.value.lock == "a"


def test_a_loss_does_not_mask_the_exception_of_the_body(locker):
    cause = KeyError("cause")
    with pytest.raises(ZeroDivisionError) as caught, locker.lock("a") as held:
        locker.force_release("a")
        held.wait_lost()
        raise ZeroDivisionError from cause
    assert caught.value.__cause__ is cause
    assert isinstance(innermost(caught.value), windlass.LockLost)
    with pytest.raises(windlass.LockLost) as caught, locker.lock("a") as held:
        locker.force_release("a")
        held.wait_lost()
        held.check()
    assert caught.value.__context__ is None


def test_wait_lost_ends_when_given_back(locker):
    lock = locker.lock("a")
    with lock as held:
        assert held.wait_lost(timeout=0.01) is None
        result = in_thread(held.wait_lost)
    assert result() is None
    assert held.wait_lost() is None


def test_on_wait_wraps_the_wait(locker):
    seen = []

    @contextmanager
    def spinner(waiting):
        seen.append(waiting)
        try:
            yield
        finally:
            seen.append("over")

    with locker.lock("a", owner="ann"):
        for timeout in longer_until(lambda: seen):
            assert not locker.lock("a", on_wait=spinner).acquire(timeout=timeout)
    assert [each if each == "over" else each.holders[0].owner for each in seen] == ["ann", "over"]
    assert locker.lock("a", on_wait=spinner).acquire()
    assert len(seen) == 2


def test_callbacks_about_a_held_lock(locker):
    told, lost, contended, too_long = [], threading.Event(), threading.Event(), threading.Event()
    lock = locker.lock(
        "a",
        on_acquired=told.append,
        on_lost=lambda notice: (told.append(notice), lost.set()),
        on_contended=lambda notice: contended.set(),
        on_held_too_long=lambda notice: too_long.set(),
        max_hold=0.01,
    )
    with pytest.raises(windlass.LockLost), lock as held:
        assert too_long.wait(60)
        contender = in_thread(lambda: locker.lock("a").acquire(timeout=60))
        assert contended.wait(60)
        locker.force_release("a")
        assert lost.wait(60)
    assert contender()
    assert [notice.lost for notice in told] == [None, "force_released"]
    assert {notice.fencing_token for notice in told} == {held.fencing_token}


def test_what_callbacks_raise_goes_to_the_unraisable_hook(locker, monkeypatch):
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: caught.append(hook.exc_type))

    def fails(_):
        raise LookupError

    with locker.lock("a", on_acquired=fails):
        for timeout in longer_until(lambda: len(caught) > 1):
            assert not locker.lock("a", on_wait=fails).acquire(timeout=timeout)
    assert caught == [LookupError, LookupError]


def test_acquire_all_takes_all_or_none(locker):
    with locker.acquire_all(["b", "a"]) as helds:
        assert [held.name for held in helds] == ["b", "a"]
        assert not locker.acquire_all(["c", "a"]).acquire(blocking=False)
        assert [status.name for status in locker.list()] == ["a", "b"]
        with pytest.raises(windlass.Timeout), locker.acquire_all(["c", "a"], timeout=0.01):
            pytest.fail("the body ran")
    assert locker.list() == []
    with pytest.raises(windlass.InvalidInput), locker.acquire_all(["a", "a"]):
        pytest.fail("the body ran")
    with pytest.raises(TypeError):
        locker.acquire_all("names")


def test_decorator_and_run(locker):
    lock = locker.lock("nightly")

    @lock
    def nightly(count, *, times=2):
        """Docs."""
        assert lock.locked()
        return count * times

    assert nightly(3, times=4) == 12
    assert (nightly.__name__, nightly.__doc__) == ("nightly", "Docs.")
    result, held_for = lock.run(nightly.__wrapped__, 3)
    assert result == 6
    assert held_for >= 0
    assert not lock.locked()

    async def coroutine():
        pass

    def generator():
        yield

    for function in (coroutine, generator):
        with pytest.raises(TypeError):
            lock(function)


def test_detach_and_attach(locker):
    with locker.lock("a") as held:
        ticket = held.detach()
        assert not held.is_held()
    assert locker.lock("a").locked()
    with locker.attach(ticket) as again:
        assert (again.name, again.fencing_token) == ("a", held.fencing_token)
        assert again.is_held()
    assert not locker.lock("a").locked()
    with pytest.raises(windlass.NotHeld):
        locker.attach(ticket)
    with pytest.raises(windlass.InvalidInput):
        locker.attach("no ticket")


def test_a_place_is_kept_for_its_ticket(locker):
    if not locker.capabilities()["keep_place"]:
        with pytest.raises(windlass.Unsupported), locker.lock("a", timeout=1, keep_place=60):
            pytest.fail("the body ran")
        return
    with locker.lock("a") as held:
        ticket = None
        for timeout in longer_until(lambda: caught.value.waiting):
            lock = locker.lock("a", timeout=timeout, keep_place=60, ticket=ticket, owner="kept")
            with pytest.raises(windlass.Timeout) as caught, lock:
                pytest.fail("the body ran")
            ticket = caught.value.ticket
        assert ticket.split(":")[1] not in f"{caught.value} {caught.value!r} {caught.value.args}"
        # In `False` there would be no room for it.
        with pytest.raises(windlass.Timeout) as caught:
            locker.lock("a", keep_place=60, ticket=ticket).acquire(timeout=1)
        assert caught.value.ticket == ticket
        assert [status.waiters[0].owner for status in locker.list()] == ["kept"]
        assert not locker.lock("a").acquire(timeout=0.1)
        held.release()
        with locker.lock("a", ticket=ticket) as turn:
            assert turn.is_held()
        with pytest.raises(windlass.Timeout) as caught, locker.lock("a"), locker.lock("a", timeout=1, keep_place=60):
            pytest.fail("the body ran")
        locker.release(caught.value.ticket)
        assert locker.list() == []
    with pytest.raises(windlass.InvalidInput):
        locker.release("no ticket")


def test_downgrade_and_upgrade(locker):
    can = locker.capabilities()
    if can["downgrade"]:
        with locker.lock("a") as held:
            held.downgrade()
            assert held.mode == "shared"
            assert locker.lock("a", mode="shared").acquire(blocking=False)
    if can["upgrade"]:
        with locker.lock("b", mode="upgradable") as held:
            with locker.lock("b", mode="shared"), pytest.raises(windlass.Timeout):
                held.upgrade(timeout=0.01)
            assert held.mode == "upgradable"
            held.upgrade()
            assert held.mode == "exclusive"
    else:
        with pytest.raises(windlass.Unsupported), locker.lock("b", mode="upgradable"):
            pytest.fail("the body ran")


def test_steal_tells_the_holder(locker):
    if not locker.capabilities()["steal"]:
        with pytest.raises(windlass.Unsupported), locker.lock("a", steal=True):
            pytest.fail("the body ran")
        return
    with pytest.raises(windlass.LockLost) as caught, locker.lock("a") as held, locker.lock("a", steal=True):
        assert held.wait_lost() == "stolen"
    assert caught.value.reason == "stolen"


@pytest.mark.parametrize("name", ["\0", "a\nb", "\U0001f512", "../../etc/passwd", "x" * 1024, "/", ".", "%00", " "])
def test_any_name(locker, name):
    with locker.lock(name) as held:
        assert held.name == name
        assert [status.name for status in locker.list()] == [name]
    assert locker.lock(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 1025, "\ud800", "é" * 513])
def test_no_name(locker, name):
    with pytest.raises(windlass.InvalidName) as caught:
        locker.lock(name)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(windlass.InvalidName):
        locker.acquire_all(["a", name])
    with pytest.raises(windlass.InvalidName):
        locker.force_release(name)


@pytest.mark.parametrize("name", [b"bytes", 7, None])
def test_names_are_text(locker, name):
    with pytest.raises(TypeError):
        locker.lock(name)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1},
        {"timeout": float("nan")},
        {"ttl": 0.5},
        {"ttl": 4000},
        {"max_hold": 0},
        {"max_hold": 1, "hold_at_least": 2},
        {"mode": "permit"},
        {"keep_place": 1},
        {"keep_place": 0, "timeout": 1},
        {"ticket": "no ticket"},
        {"steal": True, "mode": "shared"},
        {"metadata": {"k": "x" * 3000}},
    ],
)
def test_options_that_contradict_each_other(locker, options):
    with pytest.raises(windlass.InvalidInput) as caught, locker.lock("a", **options):
        pytest.fail("the body ran")
    assert isinstance(caught.value, ValueError)


def test_options_that_do_not_exist(locker):
    with pytest.raises(TypeError):
        locker.lock("a", time_out=1)
    with pytest.raises(windlass.InvalidInput):
        windlass.connect("nowhere://x")
    with pytest.raises(windlass.InvalidInput):
        locker.semaphore("a", 0)
    with pytest.raises(windlass.InvalidInput):
        locker.semaphore("a", -1)


def test_infinity_is_no_limit(locker):
    with locker.lock("a", timeout=float("inf"), max_hold=float("inf")) as held:
        assert held.is_held()


def test_exceptions_mirror_the_kinds():
    classes = {
        windlass.InvalidName: ValueError,
        windlass.InvalidInput: ValueError,
        windlass.Unsupported: Exception,
        windlass.Timeout: TimeoutError,
        windlass.LockLost: Exception,
        windlass.NotHeld: RuntimeError,
        windlass.Denied: PermissionError,
        windlass.Unavailable: ConnectionError,
        windlass.StorageError: OSError,
        windlass.Closed: Exception,
        windlass.InternalError: Exception,
    }
    for kind, builtin in classes.items():
        error = kind("text", lock="a", reason="expired")
        assert isinstance(error, windlass.Error)
        assert isinstance(error, builtin)
        assert (str(error), error.lock, error.reason) == ("text", "a", "expired")
        assert error.backend is error.waiting is error.retry_after is None
        assert str(pickle.loads(pickle.dumps(error))) == "text"


def test_close(url):
    locker = windlass.connect(url)
    with pytest.raises(windlass.LockLost) as caught, locker.lock("a") as held:
        locker.close()
        assert not held.is_held()
    assert caught.value.reason == "session_ended"
    with pytest.raises(windlass.Closed), locker.lock("a"):
        pytest.fail("the body ran")


def test_metrics_and_capabilities(locker):
    with locker.lock("a"):
        locker.lock("a").acquire(timeout=0.01)
    metrics = locker.metrics()
    assert (metrics["acquired"], metrics["timeouts"], metrics["lost_stolen"]) == (1, 1, 0)
    assert locker.capabilities()["shared"] is True


def test_watch(locker):
    changes = locker.watch()
    with locker.lock("a"):
        status = next(changes)
        assert (status.name, len(status.holders)) == ("a", 1)
    while status.holders:
        status = next(changes)
    assert status.name == "a"


def test_a_held_lock_that_nobody_refers_to_is_released(locker):
    locker.lock("a").acquire()
    gc.collect()
    assert locker.lock("a").acquire(blocking=False)


def test_all_permits_are_given_back_although_one_is_lost(locker):
    gate = locker.semaphore("a", 3)
    assert all([gate.acquire(), gate.acquire(), gate.acquire()])
    locker.force_release("a", gate.held.fencing_token)
    assert gate.held.wait_lost(PATIENCE) == "force_released"
    with pytest.raises(windlass.LockLost):
        gate.release(3)
    assert locker.list() == []


def test_a_lock_in_a_cycle_is_released(locker):
    class Job:
        def __init__(self):
            self.lock = locker.lock("a", on_wait=self.wait)
            assert self.lock.acquire()

        def wait(self, waiting):
            pass

    gone = weakref.ref(Job())
    gc.collect()
    assert gone() is None
    until(lambda: locker.lock("a").acquire(blocking=False))


def test_nothing_is_left_of_a_thousand_timeouts(locker):
    def resources():
        gc.collect()
        tasks = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else []
        fds = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
        return len(tasks), len(fds)

    lock = locker.lock("a")
    with locker.lock("a"):
        for _ in range(20):
            assert not lock.acquire(timeout=0.001)
        before = resources()
        for _ in range(1000):
            assert not lock.acquire(timeout=0.0001)

        # Over a network they are given back in the background, and where the machine is busy a look among them has no
        # answer in time.
        def nobody_waits():
            with suppress(windlass.Unavailable):
                return waiters(locker, "a") == 0

        until(nobody_waits)
        after = resources()
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2


def test_default_locker(file_url, monkeypatch):
    with windlass.Lock("windlass-test-default") as held:
        assert held.is_held()
        assert [status.name for status in windlass.default_locker().list("windlass-test-default")]
    with windlass.RLock("windlass-test-default"), windlass.Semaphore("windlass-test-gate", 2):
        pass
