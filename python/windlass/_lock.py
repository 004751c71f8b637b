"""The lock objects: `Lock`, `RLock`, `Semaphore`, and several locks at once."""

from __future__ import annotations

from . import _windlass
from ._errors import InvalidInput, NotHeld, call_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from typing_extensions import ParamSpec, Self, Unpack

    from ._locker import Locker
    from ._seen import CommonOptions, LockOptions
    from ._windlass import Held

    P = ParamSpec("P")
    R = TypeVar("R")

# inspect.CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR; importing inspect would cost more than all of windlass.
_SUSPENDS = 0x20 | 0x80 | 0x200


class _Runs(_windlass.Lock):
    """What all kinds have in common: guarding a function."""

    __slots__ = ("__weakref__",)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Guard a function: each call of it takes the lock, and gives it back at its end."""
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & _SUSPENDS:
            raise TypeError(
                "this lock would be given back before the body of a coroutine or generator function has run: "
                "use windlass.aio for coroutines, and `with` inside of generators"
            )
        from functools import wraps

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return guarded

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
        """Call a function while holding the lock.

        Returns:
            What the function returned, and for how many seconds the lock was held.

        """
        with self as held:
            result = function(*args, **kwargs)
            held_for = max((each.held_for for each in _each(held)), default=0.0)
        return result, held_for


def _each(shown: Held | list[Held]) -> list[Held]:
    return shown if isinstance(shown, list) else [shown]


class Lock(_Runs):
    """A named lock, with the methods and meanings of `threading.Lock`.

    `with lock as held` waits for the lock, for `timeout` seconds at the most, and gives it as a `Held`. It raises when
    the lock was not taken, and `LockLost` at the end when it was lost inside; an exception of the body goes on, with
    the loss shown as its context. Waiting lets other threads run and answers Ctrl-C at once.

    A lock object can be used by several threads at once; each `with` and each `acquire` is a claim of its own, and
    what is held belongs to the object, not to a thread. What it holds is given back when the object is gone.

    Args:
        name: Any text of 1 to 1,024 bytes in UTF-8. The same name is the same lock everywhere.
        locker: Where the lock lives; unless told otherwise `$WINDLASS_URL`, else files of this user on this machine.
        options: See `LockOptions`: timeout, keep_place, ticket, ttl, mode, steal, max_hold, hold_at_least,
            random_delay, owner, metadata, on_wait, on_acquired, on_lost, on_contended, on_held_too_long.

    Raises:
        InvalidName: The name is empty, too long, or no UTF-8.
        InvalidInput: An option makes no sense, or options contradict each other.
        Timeout: From `with`: the lock could not be had in time.
        LockLost: From `with`, at its end: the lock was lost inside.

    >>> import windlass
    >>> locker = windlass.connect("memory:lock-doc")
    >>> with locker.lock("deploy", timeout=30) as held:
    ...     held.is_held(), held.name
    (True, 'deploy')
    >>> lock = locker.lock("deploy")
    >>> lock.acquire(timeout=1.5)
    True
    >>> locker.lock("deploy").acquire(blocking=False)
    False
    >>> lock.release()
    >>> lock.release()
    Traceback (most recent call last):
    windlass.NotHeld: release unlocked lock

    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __new__(cls, name: str, *, locker: Locker | None = None, **options: Unpack[LockOptions]) -> Self: ...
        @property
        def name(self) -> str: ...
        @property
        def held(self) -> Held | None: ...
        def __enter__(self) -> Held: ...


class RLock(_Runs):
    """A named lock, with the methods and meanings of `threading.RLock`.

    The thread that holds it through this object can take it again at once, and must give it back as many times. Only
    that thread can.

    Args:
        name: As for `Lock`.
        locker: As for `Lock`.
        options: As for `Lock`, but for mode and steal.

    >>> import windlass
    >>> lock = windlass.connect("memory:rlock-doc").rlock("deploy")
    >>> with lock as outer, lock as inner:
    ...     outer is inner
    True

    """

    __slots__ = ()

    def __new__(cls, name: str, *, locker: Locker | None = None, **options: Unpack[CommonOptions]) -> Self:
        """Make the lock object; nothing is asked for yet."""
        return super().__new__(cls, name, locker=locker, reentrant=True, **options)

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def held(self) -> Held | None: ...
        def __enter__(self) -> Held: ...


class Semaphore(_Runs):
    """A named semaphore, with the methods and meanings of `threading.BoundedSemaphore`.

    At most `limit` permits are out at once, everywhere. Where claims name different limits, the smallest counts.

    Args:
        name: As for `Lock`.
        limit: How many permits there are, 1 or more.
        locker: As for `Lock`.
        options: As for `Lock`, but for mode and steal.

    >>> import windlass
    >>> locker = windlass.connect("memory:semaphore-doc")
    >>> gate = locker.semaphore("builds", 2)
    >>> with gate, gate:
    ...     gate.acquire(blocking=False)
    False
    >>> gate.release()
    Traceback (most recent call last):
    windlass.NotHeld: semaphore released too many times

    """

    __slots__ = ()

    def __new__(
        cls, name: str, limit: int = 1, *, locker: Locker | None = None, **options: Unpack[CommonOptions]
    ) -> Self:
        """Make the semaphore object; nothing is asked for yet."""
        if limit < 0:
            raise InvalidInput(f"limit={limit} is negative: give a limit of 1 or more")
        return super().__new__(cls, name, locker=locker, limit=limit, **options)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit: `True` if one was taken, `False` if none was to be had within `timeout` seconds."""
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        return self.take_in_time(blocking, timeout)

    def release(self, n: int = 1) -> None:
        """Give back `n` permits that were taken through this object, or none if it has not taken as many."""
        if n < 1:
            raise ValueError("n must be one or more")
        if self.times_held() < n:
            raise NotHeld("semaphore released too many times", lock=self.name)
        call_all([super().release] * n)

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def held(self) -> Held | None: ...
        def __enter__(self) -> Held: ...


class LockAll(_Runs):
    """Several locks at once, all or none: what `Locker.acquire_all` gives.

    `with locks as helds` gives the held locks in the order of the names. No order of names can deadlock.
    """

    __slots__ = ()

    def __new__(cls, names: Iterable[str], *, locker: Locker | None = None, **options: Unpack[LockOptions]) -> Self:
        """Make the lock object; nothing is asked for yet."""
        if isinstance(names, str):
            raise TypeError("acquire_all takes a list of names, not one name")
        return super().__new__(cls, tuple(names), locker=locker, **options)

    if TYPE_CHECKING:

        @property
        def name(self) -> tuple[str, ...]: ...
        @property
        def held(self) -> list[Held] | None: ...
        def __enter__(self) -> list[Held]: ...
