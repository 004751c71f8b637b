"""The locks of windlass for asyncio, with the meanings of `asyncio.Lock` and its kin.

>>> import asyncio
>>> from windlass import aio
>>> async def main():
...     async with await aio.connect("memory:aio-doc") as locker:
...         async with locker.lock("deploy", timeout=30) as held:
...             return held.is_held()
>>> asyncio.run(main())
True

If a lock is lost while the body of an `async with` runs, the body is cancelled and `LockLost` is raised in its place,
as `asyncio.timeout` does. Cancelling a task at any point leaves neither a grant nor a place in the queue behind.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import wait
from functools import partial, wraps

from . import _windlass
from ._errors import Error, InvalidInput, NotHeld, Timeout, call_all, raise_first
from ._locker import _Base
from ._windlass import AsyncHeld as Held

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
    from types import TracebackType
    from typing import Any, TypeVar

    from typing_extensions import ParamSpec, Self, Unpack

    from ._seen import CommonOptions, Holder, LockOptions, Status

    P = ParamSpec("P")
    R = TypeVar("R")

__all__ = [
    "Held",
    "Lock",
    "LockAll",
    "Locker",
    "RLock",
    "Semaphore",
    "connect",
    "default_locker",
]

# How many seconds an asynchronous function that gives tokens may take.
_TOKEN_PATIENCE = 30.0
# How often to look whether there is still somebody to wait for.
_LOOK_EVERY = 0.1

_CALLED_LATER = ("on_lost", "on_contended", "on_held_too_long")


class _Claim:
    """Something that was taken, and the task that is told of its loss."""

    __slots__ = ("cancelling", "entered", "helds", "shown", "starting", "task", "told", "watches")

    def __init__(self, shown: Held | list[Held], task: asyncio.Task[Any] | None) -> None:
        self.shown = shown
        self.helds = _each(shown)
        self.task = task
        self.entered = 1
        self.told = False
        self.starting = True
        self.cancelling = 0
        self.watches: list[_windlass.Watch] = []

    def watch(self) -> None:
        """Cancel the task when the lock is lost from now on; raise `LockLost` if it is lost already."""
        if self.task is not None and sys.version_info >= (3, 11):
            self.cancelling = self.task.cancelling()
        for held in self.helds:
            watch = held.wait_lost().watch(self._hear)
            if watch is not None:
                self.watches.append(watch)
        self.starting = False
        self.check()

    def check(self) -> None:
        for held in self.helds:
            held.check()

    def unwatch(self) -> None:
        for watch in self.watches:
            watch.cancel()
        self.watches.clear()

    def uncancel(self) -> bool:
        """Take back the cancellation of the task, if it was ours; whether it was nobody else's."""
        if not self.told or self.task is None:
            return False
        if sys.version_info >= (3, 11):
            return self.task.uncancel() <= self.cancelling
        return True

    async def release(self) -> None:
        if len(self.helds) == 1:
            await self.helds[0].release()
            return
        outcomes = await asyncio.gather(*map(_release, self.helds), return_exceptions=True)
        raise_first(outcome for outcome in outcomes if outcome is not None)

    def _hear(self, reason: str | None) -> None:
        if reason is None or self.told or self.starting or self.task is None:
            return
        self.told = True
        self.task.cancel()


def _each(shown: Held | list[Held]) -> list[Held]:
    return shown if isinstance(shown, list) else [shown]


async def _release(held: Held) -> None:
    await held.release()


class _Runs:
    """What all kinds have in common."""

    __slots__ = ("__weakref__", "_claims", "_loop", "_native", "_reentrant")

    def __init__(
        self,
        name: str | tuple[str, ...],
        *,
        locker: Locker | None = None,
        limit: int | None = None,
        reentrant: bool = False,
        **options: Unpack[LockOptions],
    ) -> None:
        self._loop: list[asyncio.AbstractEventLoop] = []
        given: dict[str, Any] = {**options}
        for key in _CALLED_LATER:
            if given.get(key) is not None:
                given[key] = partial(_call_on_loop, self._loop, given[key])
        self._native = _windlass.Lock(name, locker=locker, limit=limit, **given)
        self._reentrant = reentrant
        self._claims: list[_Claim] = []

    async def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take the lock: `True` if it was taken, `False` if it was not in time.

        Args:
            blocking: Whether to wait for it.
            timeout: For how many seconds at the most; unless told otherwise that of this object, or no limit.

        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout is not None and timeout <= 0:
            blocking, timeout = False, None
        try:
            return await self._take(blocking, timeout) is not None
        except Timeout as error:
            # A ticket is not to be lost in a `False`.
            if error.ticket is not None:
                raise
            return False

    def release(self) -> None:
        """Give back what was taken last through this object, by this task if it took anything.

        What cannot be done at once is done in the background: `await held.release()` waits for it. What only that finds
        out, `on_lost` tells.

        Raises:
            NotHeld: Nothing is held through this object.
            LockLost: The lock was lost before.

        """
        claim = self._leave()
        if claim.entered > 0:
            claim.check()
            return
        claim.unwatch()
        call_all([held.release().begin for held in claim.helds])

    def locked(self) -> bool:
        """Return whether the lock is held through this object; `Locker.list` tells who else holds it."""
        return any(held.is_held() for claim in self._claims for held in claim.helds)

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Guard a coroutine function: each call of it takes the lock, and gives it back at its end."""
        # inspect.CO_COROUTINE; functions of another kind may still return awaitables.
        if getattr(getattr(function, "__code__", None), "co_flags", 0x80) & (0x20 | 0x200):
            raise TypeError("use `async with` inside of generators: the lock would be given back before the body")

        @wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            async with self:
                return await function(*args, **kwargs)

        return guarded

    async def run(self, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
        """Await a function while holding the lock.

        Returns:
            What it gave, and for how many seconds the lock was held.

        """
        async with self as held:
            result = await function(*args, **kwargs)
            held_for = max((each.held_for for each in _each(held)), default=0.0)
        return result, held_for

    async def __aenter__(self) -> Any:
        claim = await self._take()
        assert claim is not None
        if claim.entered == 1:
            try:
                claim.watch()
            except BaseException:
                self._claims.remove(claim)
                claim.unwatch()
                raise
        return claim.shown

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claim = self._leave()
        only_ours = False
        try:
            if claim.entered > 0:
                claim.check()
            else:
                claim.unwatch()
                only_ours = claim.uncancel()
                await claim.release()
        except Error as error:
            if exc is None:
                raise
            if only_ours and isinstance(exc, asyncio.CancelledError):
                raise error from exc
            _add_context(exc, error)

    async def _take(self, blocking: bool = True, timeout: float | None = None) -> _Claim | None:
        task = asyncio.current_task()
        claim = self._last(task) if self._reentrant else None
        if claim is not None:
            claim.check()
            claim.entered += 1
            return claim
        self._loop[:] = [asyncio.get_running_loop()]
        shown = await self._native.ask(blocking, timeout)
        if shown is None:
            return None
        claim = _Claim(shown, task)
        self._claims.append(claim)
        return claim

    def _leave(self) -> _Claim:
        """Leave what this task took last, once: it may have been entered more often."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        claim = self._last(task)
        if claim is None and self._claims and not self._reentrant:
            claim = self._claims[-1]
        if claim is None:
            raise NotHeld(self._not_held, lock=str(self._native.name))
        claim.entered -= 1
        if claim.entered == 0:
            self._claims.remove(claim)
        return claim

    def _last(self, task: asyncio.Task[Any] | None) -> _Claim | None:
        return next((claim for claim in reversed(self._claims) if claim.task is task), None)

    @property
    def _not_held(self) -> str:
        return "cannot release un-acquired lock" if self._reentrant else "release unlocked lock"

    def __repr__(self) -> str:
        return repr(self._native).replace("Lock", type(self).__name__, 1)


class Lock(_Runs):
    """A named lock, with the methods and meanings of `asyncio.Lock`.

    `async with lock as held` waits for the lock, for `timeout` seconds at the most, and gives it as a `Held`. If the
    lock is lost meanwhile, the body is cancelled and `LockLost` raised.

    What it holds is given back when the object is gone.

    Args:
        name: Any text of 1 to 1,024 bytes in UTF-8. The same name is the same lock everywhere.
        locker: Where the lock lives; unless told otherwise `$WINDLASS_URL`, else files of this user on this machine.
        options: See `windlass.LockOptions`. `on_lost`, `on_contended` and `on_held_too_long` are called by the event
            loop.

    Raises:
        windlass.InvalidName: The name is empty, too long, or no UTF-8.
        windlass.InvalidInput: An option makes no sense, or options contradict each other.
        windlass.Timeout: From `async with`: the lock could not be had in time.
        windlass.LockLost: From `async with`, at its end: the lock was lost inside.

    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __init__(self, name: str, *, locker: Locker | None = None, **options: Unpack[LockOptions]) -> None: ...
        async def __aenter__(self) -> Held: ...

    @property
    def name(self) -> str:
        """Which lock."""
        return str(self._native.name)


class RLock(_Runs):
    """A named lock that the task that holds it through this object can take again at once.

    It must give it back as many times, and only that task can.
    """

    __slots__ = ()

    def __init__(self, name: str, *, locker: Locker | None = None, **options: Unpack[CommonOptions]) -> None:
        super().__init__(name, locker=locker, reentrant=True, **options)

    if TYPE_CHECKING:

        async def __aenter__(self) -> Held: ...

    @property
    def name(self) -> str:
        """Which lock."""
        return str(self._native.name)


class Semaphore(_Runs):
    """A named semaphore, with the methods and meanings of `asyncio.BoundedSemaphore`.

    At most `limit` permits are out at once, everywhere.
    """

    __slots__ = ("_limit",)

    def __init__(
        self, name: str, limit: int = 1, *, locker: Locker | None = None, **options: Unpack[CommonOptions]
    ) -> None:
        if limit < 0:
            raise InvalidInput(f"limit={limit} is negative: give a limit of 1 or more")
        super().__init__(name, locker=locker, limit=limit, **options)
        self._limit = limit

    if TYPE_CHECKING:

        async def __aenter__(self) -> Held: ...

    def locked(self) -> bool:
        """Return whether all permits are held through this object."""
        return sum(held.is_held() for claim in self._claims for held in claim.helds) >= self._limit

    @property
    def name(self) -> str:
        """Which lock."""
        return str(self._native.name)

    @property
    def _not_held(self) -> str:
        return "semaphore released too many times"


class LockAll(_Runs):
    """Several locks at once, all or none: what `Locker.acquire_all` gives.

    `async with locks as helds` gives the held locks in the order of the names. No order of names can deadlock.
    """

    __slots__ = ()

    def __init__(self, names: Iterable[str], *, locker: Locker | None = None, **options: Unpack[LockOptions]) -> None:
        if isinstance(names, str):
            raise TypeError("acquire_all takes a list of names, not one name")
        super().__init__(tuple(names), locker=locker, **options)

    if TYPE_CHECKING:

        async def __aenter__(self) -> list[Held]: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Which locks."""
        return tuple(self._native.name)


class Locker(_Base):
    """A connection to where locks live, made by `connect`. It makes locks.

    `async with await connect(...) as locker` closes it at the end.
    """

    __slots__ = ()

    def lock(self, name: str, **options: Unpack[LockOptions]) -> Lock:
        """Return the lock of this name; see `Lock`. Nothing is asked for yet."""
        return Lock(name, locker=self, **options)

    def rlock(self, name: str, **options: Unpack[CommonOptions]) -> RLock:
        """Return the lock of this name as a re-entrant one; see `RLock`. Nothing is asked for yet."""
        return RLock(name, locker=self, **options)

    def semaphore(self, name: str, limit: int = 1, **options: Unpack[CommonOptions]) -> Semaphore:
        """Return the semaphore of this name with `limit` permits; see `Semaphore`. Nothing is asked for yet."""
        return Semaphore(name, limit, locker=self, **options)

    def acquire_all(self, names: Iterable[str], **options: Unpack[LockOptions]) -> LockAll:
        """Return the locks of these names, to be taken together, all or none, by `async with`."""
        return LockAll(names, locker=self, **options)

    async def attach(self, ticket: str) -> Held:
        """Take up a held lock from a ticket, which `Held.detach` gave: this locker renews and releases it from now on.

        Raises:
            windlass.NotHeld: The claim has run out, was released, or belongs to a process that cannot hand it on.
            windlass.InvalidInput: This is no ticket.

        """
        held: Held = await self._native.attach(ticket, asynchronous=True)
        return held

    async def release(self, ticket: str) -> None:
        """Give back what a ticket is for: the place in the queue that `keep_place` kept, or what `Held.detach` left.

        One that is not there any more is no error.

        Raises:
            windlass.InvalidInput: This is no ticket, or this locker has its claim: release that.

        """
        await self._native.release(ticket)

    async def list(self, prefix: str = "") -> list[Status]:
        """Return who holds and who waits, for the names that begin with `prefix`, sorted by name."""
        return await self._native.list(prefix)

    async def watch(self, prefix: str = "") -> AsyncIterator[Status]:
        """Give the locks whose names begin with `prefix`, and then each one again whenever it has changed.

        The iterator waits for changes without end. A lock that is free comes once more without holders.
        """
        changes = await self._native.watch(prefix)
        while (status := await changes.next()) is not None:
            yield status

    async def force_release(self, name: str, fencing_token: int | None = None) -> builtins.list[Holder]:
        """Free a lock as an operator: all its claims, or only the one with this fencing token.

        Whoever held it is told that it is lost, with the reason "force_released".

        Returns:
            Whom it was taken from; empty if nobody held it.

        """
        return await self._native.force_release(name, fencing_token)

    async def close(self) -> None:
        """Release everything that is held through this locker, and let nobody acquire through it any more.

        Raises:
            windlass.Unavailable: The backend could not be told; what was held is then free when its TTL is over.

        """
        await self._native.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def connect(
    url: str | None = None,
    *,
    ttl: float | None = None,
    owner: str | None = None,
    metadata: Mapping[str, str] | None = None,
    token: str | Callable[[], str | Awaitable[str]] | None = None,
) -> Locker:
    """Connect to where locks live; see `windlass.connect`.

    A function that gives tokens may be `async`: it then runs on the event loop on which this was called. Otherwise it
    is called on another thread.
    """
    if callable(token):
        token = _on_loop(token, asyncio.get_running_loop())
    return Locker(await _windlass.connect(url, ttl=ttl, owner=owner, metadata=metadata, token=token))


def default_locker() -> Locker:
    """Return the locker of the locks that are made without one: one for each process, made at first use."""
    return Locker(_windlass.default_locker())


def _on_loop(source: Callable[[], str | Awaitable[str]], loop: asyncio.AbstractEventLoop) -> Callable[[], str]:
    async def wait_for(token: Awaitable[str]) -> str:
        return await token

    def call() -> str:
        token = source()
        if isinstance(token, str):
            return token
        waiting = wait_for(token)
        try:
            asked = asyncio.run_coroutine_threadsafe(waiting, loop)
            for _ in range(round(_TOKEN_PATIENCE / _LOOK_EVERY)):
                if wait([asked], _LOOK_EVERY).done:
                    return asked.result()
                if loop.is_closed():
                    break
            asked.cancel()
            message = "the event loop that connected is closed, or too busy"
            raise RuntimeError(message)
        finally:
            # Nobody runs there any more what has not begun.
            if loop.is_closed():
                waiting.close()
                if asyncio.iscoroutine(token):
                    token.close()

    return call


def _call_on_loop(where: list[asyncio.AbstractEventLoop], callback: Callable[[Any], object], notice: object) -> None:
    for loop in where:
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback, notice)


def _add_context(exc: BaseException, lost: BaseException) -> None:
    """Show a loss as the innermost of the exceptions from which the body's one arose."""
    innermost = exc
    while not isinstance(innermost, type(lost)):
        if innermost.__context__ is None:
            # It was raised while `exc` was handled: what it shows as its own context would close a ring.
            lost.__context__ = None
            innermost.__context__ = lost
            return
        innermost = innermost.__context__
