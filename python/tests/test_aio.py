"""The asyncio face."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading

import pytest
from conftest import PATIENCE, in_thread, innermost

import windlass
from windlass import aio


def run(function):
    """Run a coroutine function with a locker of each backend."""

    def test(url):
        async def main():
            async with await aio.connect(url) as locker:
                await asyncio.wait_for(function(locker), PATIENCE)
                # A release that cannot be awaited may be on its way.
                await asyncio.wait_for(until_free(locker), PATIENCE)

        asyncio.run(main())

    test.__name__, test.__doc__ = function.__name__, function.__doc__
    return test


async def until_free(locker):
    while await locker.list():
        await asyncio.sleep(0.002)


async def until_waiting(locker, name, count=1):
    while sum(len(status.waiters) for status in await locker.list() if status.name == name) < count:
        await asyncio.sleep(0.002)


@run
async def test_async_with(locker):
    async with locker.lock("a") as held:
        assert isinstance(held, aio.Held)
        assert (held.name, held.mode, held.is_held()) == ("a", "exclusive", True)
        held.check()
    assert not held.is_held()


@run
async def test_the_methods_of_asyncio_lock(locker):
    theirs, ours = asyncio.Lock(), locker.lock("a")
    for lock in (theirs, ours):
        with pytest.raises(RuntimeError):
            lock.release()
        assert not lock.locked()
        assert await lock.acquire() is True
        assert lock.locked()
        waiter = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0)
        assert lock.release() is None
        assert await waiter is True
        lock.release()
        with pytest.raises(RuntimeError):
            lock.release()


@run
async def test_the_methods_of_asyncio_bounded_semaphore(locker):
    theirs, ours = asyncio.BoundedSemaphore(2), locker.semaphore("a", 2)
    for gate in (theirs, ours):
        with pytest.raises(ValueError):
            gate.release()
        async with gate:
            assert not gate.locked()
            await gate.acquire()
            assert gate.locked()
            gate.release()
        with pytest.raises(ValueError):
            gate.release()


@run
async def test_rlock_belongs_to_the_task(locker):
    lock = locker.rlock("a")
    async with lock as outer:
        async with lock as inner:
            assert outer is inner
        assert outer.is_held()
        other = asyncio.create_task(lock.acquire(blocking=False))
        assert await other is False

        async def release():
            lock.release()

        with pytest.raises(RuntimeError):
            await asyncio.create_task(release())
    assert not outer.is_held()


@run
async def test_timeouts(locker):
    async with locker.lock("a"):
        assert await locker.lock("a").acquire(timeout=0.01) is False
        assert await locker.lock("a").acquire(timeout=0) is False
        assert await locker.lock("a").acquire(blocking=False) is False
        with pytest.raises(windlass.Timeout):
            async with locker.lock("a", timeout=0.01):
                pytest.fail("the body ran")
        with pytest.raises(ValueError):
            await locker.lock("a").acquire(blocking=False, timeout=1)
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await locker.lock("a").acquire()


@run
async def test_tasks_exclude_each_other(locker):
    lock, inside, most = locker.lock("a"), [], []

    async def work():
        for _ in range(25):
            async with lock as held:
                inside.append(held)
                most.append(len(inside))
                await asyncio.sleep(0)
                inside.remove(held)

    await asyncio.gather(*(work() for _ in range(8)))
    assert (max(most), len(most)) == (1, 200)


@run
async def test_the_body_is_cancelled_when_the_lock_is_lost(locker):
    cancelled = False
    with pytest.raises(windlass.LockLost) as caught:
        async with locker.lock("a") as held:
            try:
                await locker.force_release("a")
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
    assert cancelled
    assert caught.value.reason == held.lost == "force_released"
    assert isinstance(caught.value.__context__, asyncio.CancelledError)
    if sys.version_info >= (3, 11):
        assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


@run
async def test_one_of_several_is_lost(locker):
    with pytest.raises(windlass.LockLost) as caught:
        async with locker.acquire_all(["a", "b"]) as helds:
            assert [held.name for held in helds] == ["a", "b"]
            await locker.force_release("b")
            await asyncio.Event().wait()
    assert caught.value.lock == "b"


@run
async def test_only_the_task_that_holds_is_cancelled(locker):
    begun, lock = asyncio.Event(), locker.lock("a")

    async def work():
        async with lock:
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    await locker.force_release("a")
    with pytest.raises(windlass.LockLost):
        await task
    async with locker.lock("outer"):
        with pytest.raises(windlass.LockLost):
            async with locker.lock("inner"):
                await locker.force_release("inner")
                await asyncio.Event().wait()


@run
async def test_an_exception_of_the_body_goes_on(locker):
    with pytest.raises(ZeroDivisionError) as caught:
        async with locker.lock("a") as held:
            try:
                await locker.force_release("a")
                await held.wait_lost()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None
    assert isinstance(innermost(caught.value), windlass.LockLost)
    with pytest.raises(LookupError):
        async with locker.lock("a"):
            raise LookupError


@run
async def test_an_exception_goes_on_out_of_a_lock_that_was_entered_again(locker):
    lock = locker.rlock("a")
    with pytest.raises(ZeroDivisionError) as caught:
        async with lock, lock:
            try:
                await locker.force_release("a")
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ZeroDivisionError from None
    assert isinstance(innermost(caught.value), windlass.LockLost)
    with pytest.raises(windlass.LockLost):
        async with lock, lock:
            await locker.force_release("a")
            await asyncio.Event().wait()


@run
async def test_all_are_given_back_although_one_is_lost(locker):
    locks = locker.acquire_all(["a", "b"])
    assert await locks.acquire()
    first, second = [held for claim in locks._claims for held in claim.helds]
    await locker.force_release("a")
    assert await first.wait_lost() == "force_released"
    with pytest.raises(windlass.LockLost):
        locks.release()
    assert not second.is_held()


@run
async def test_a_body_that_swallows_the_cancellation(locker):
    with pytest.raises(windlass.LockLost):
        async with locker.lock("a"):
            try:
                await locker.force_release("a")
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
    await asyncio.sleep(0)


@run
async def test_cancelling_from_outside_stays_a_cancellation(locker):
    begun = asyncio.Event()

    async def work():
        async with locker.lock("a"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await locker.list() == []
    if sys.version_info >= (3, 11):
        begun.clear()
        task = asyncio.create_task(work())
        await begun.wait()
        task.cancel()
        await locker.force_release("a")
        with pytest.raises(asyncio.CancelledError):
            await task


class Stepper:
    """Drives a coroutine as a task does, and cancels it at its n-th suspension."""

    def __init__(self, coroutine, at):
        self.coroutine, self.left = coroutine, at

    def __await__(self):
        value, error = None, None
        while True:
            try:
                if error is not None:
                    future = self.coroutine.throw(error)
                else:
                    future = self.coroutine.send(value)
            except StopIteration as stop:
                return stop.value
            if self.left == 0:
                self.left = -1
                if future is not None:
                    future._asyncio_future_blocking = False
                error = asyncio.CancelledError()
                continue
            self.left -= 1
            error = None
            try:
                yield future
            except BaseException as thrown:
                error = thrown


@run
async def test_cancelling_at_every_await_leaves_nothing(locker):
    lock = locker.lock("a")

    async def work(hold):
        hold = asyncio.create_task(hold.release_soon())
        async with lock:
            await asyncio.sleep(0)
            assert await locker.lock("b").acquire(timeout=0.01) in (True, False)
            async with locker.acquire_all(["c", "d"]):
                await asyncio.sleep(0)
        await hold

    class Hold:
        def __init__(self, held):
            self.held = held

        async def release_soon(self):
            await asyncio.sleep(0.005)
            await self.held.release()

    completed, cancelled, step = False, 0, 0
    while not completed:
        holder = locker.lock("a")
        await holder.acquire()
        hold = Hold(holder._claims[0].helds[0])
        try:
            await Stepper(work(hold), step)
            completed = True
        except asyncio.CancelledError:
            cancelled += 1
        await hold.held.release()
        del holder, hold
        gc.collect()
        while await locker.list():
            await asyncio.sleep(0.002)
        step += 1
    assert cancelled >= 3


@run
async def test_cancelling_after_each_turn_of_the_loop(locker):
    async def work():
        async with locker.lock("a"):
            await asyncio.sleep(0)
        async with locker.lock("a", timeout=5):
            await asyncio.sleep(0)

    for contended in (False, True):
        for turns in range(12):
            holder = locker.lock("a")
            if contended:
                await holder.acquire()
            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            if contended and turns % 2:
                holder.release()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if contended and not turns % 2:
                holder.release()
            while await locker.list():
                await asyncio.sleep(0.002)


@run
async def test_decorator_and_run(locker):
    lock = locker.lock("nightly")

    @lock
    async def nightly(count):
        assert lock.locked()
        return count * 2

    assert await nightly(3) == 6
    result, held_for = await lock.run(nightly.__wrapped__, 4)
    assert (result, held_for >= 0) == (8, True)

    async def generator():
        yield

    with pytest.raises(TypeError):
        lock(generator)


@run
async def test_callbacks_are_called_by_the_loop(locker):
    told, lost, contended = [], asyncio.Event(), asyncio.Event()

    def on_lost(notice):
        told.append((notice.lost, threading.get_ident()))
        lost.set()

    lock = locker.lock("a", on_lost=on_lost, on_contended=lambda _: contended.set())
    await lock.acquire()
    contender = asyncio.create_task(locker.lock("a").acquire())
    await contended.wait()
    contender.cancel()
    await asyncio.gather(contender, return_exceptions=True)
    await locker.force_release("a")
    await lost.wait()
    assert told == [("force_released", threading.get_ident())]
    with pytest.raises(windlass.LockLost):
        lock.release()


@run
async def test_detach_attach_and_watch(locker):
    async with locker.lock("a") as held:
        ticket = held.detach()
    again = await locker.attach(ticket)
    assert again.is_held()
    seen = []
    async for status in locker.watch():
        seen.append((status.name, len(status.holders)))
        if seen[-1] == ("a", 0):
            break
        assert again.is_held() or len(seen) < 50
        await again.release()
    assert seen[0] == ("a", 1)


@run
async def test_a_place_is_kept_for_its_ticket(locker):
    if not locker.capabilities()["keep_place"]:
        return
    async with locker.lock("a") as held:
        with pytest.raises(windlass.Timeout) as caught:
            await locker.lock("a", keep_place=60).acquire(timeout=1)
        ticket = caught.value.ticket
        await held.release()
        async with locker.lock("a", ticket=ticket) as turn:
            assert turn.is_held()
    async with locker.lock("a"):
        with pytest.raises(windlass.Timeout) as caught:
            async with locker.lock("a", timeout=1, keep_place=60):
                pytest.fail("the body ran")
        await locker.release(caught.value.ticket)
    assert await locker.list() == []


@run
async def test_other_tasks_and_threads_run_meanwhile(locker):
    async with locker.lock("a"):
        tasks = [asyncio.create_task(locker.lock("a").acquire()) for _ in range(20)]
        await until_waiting(locker, "a", 20)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        while (await locker.list("a"))[0].waiters:
            await asyncio.sleep(0.002)


@run
async def test_a_task_destroyed_while_it_waits(locker):
    async with locker.lock("a"):
        task = locker.lock("a").acquire()
        waiting = task.send(None)
        waiting._asyncio_future_blocking = False
        await until_waiting(locker, "a")
        task.close()
        while (await locker.list("a"))[0].waiters:
            await asyncio.sleep(0.002)


def test_one_loop_after_another_and_two_at_once(url):
    async def work():
        locker = await aio.connect(url)
        for _ in range(20):
            async with locker.lock("a"):
                await asyncio.sleep(0)

    for result in [in_thread(lambda: asyncio.run(work())) for _ in range(3)]:
        result()
    for _ in range(3):
        asyncio.run(work())


def test_threads_and_tasks_exclude_each_other(url):
    sync, total = windlass.connect(url), [0]

    def thread():
        for _ in range(50):
            with sync.lock("a"):
                value = total[0]
                total[0] = value + 1

    async def task():
        locker = await aio.connect(url)
        for _ in range(50):
            async with locker.lock("a"):
                value = total[0]
                await asyncio.sleep(0)
                total[0] = value + 1

    results = [in_thread(thread), in_thread(thread), in_thread(lambda: asyncio.run(task()))]
    asyncio.run(task())
    for result in results:
        result()
    assert total[0] == 200


def test_default_locker(tmp_path):
    async def main():
        async with aio.Lock("windlass-test-aio") as held:
            assert held.is_held()
        assert await aio.default_locker().list("windlass-test-aio") == []

    asyncio.run(main())
