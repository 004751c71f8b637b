"""The exceptions. They mirror the kinds of error of the core, one to one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._seen import Waiting


class Error(Exception):
    """Whatever goes wrong with locks.

    Attributes:
        lock: The name of the lock, where one is concerned.
        backend: Where it happened, as a URL without credentials.
        waiting: For `Timeout`: who holds the lock and which place in the queue one had, as last heard.
        ticket: Where `keep_place` was asked for: the ticket of the place in the queue; a secret that no text has.
        retry_after: After how many seconds the backend wants to be asked again, if it said so.
        reason: For `LockLost`: "expired", "unreachable", "force_released", "stolen" or "session_ended".

    """

    def __init__(
        self,
        message: str = "",
        *,
        lock: str | None = None,
        backend: str | None = None,
        waiting: Waiting | None = None,
        ticket: str | None = None,
        retry_after: float | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.lock = lock
        self.backend = backend
        self.waiting = waiting
        self.ticket = ticket
        self.retry_after = retry_after
        self.reason = reason


class InvalidName(Error, ValueError):
    """The name is empty, longer than 1,024 bytes, or no UTF-8. Nothing was sent."""


class InvalidInput(Error, ValueError):
    """A URL, an option or a ticket makes no sense, or options contradict each other. Nothing was sent."""


class Unsupported(Error):
    """This backend cannot do what was asked; `Locker.capabilities()` tells beforehand."""


class Timeout(Error, TimeoutError):
    """The lock could not be had in time; `waiting` says who holds it.

    Nothing is left behind but a place that has a `ticket`.
    """


class LockLost(Error):
    """The lock was held and is no longer: another may hold it. Stop the guarded work; `reason` says why."""


class NotHeld(Error, RuntimeError, ValueError):
    """The lock is not held: never taken, given back before, or run out.

    It is a `RuntimeError` as from `threading.Lock` and a `ValueError` as from `threading.BoundedSemaphore`.
    """


class Denied(Error, PermissionError):
    """The backend refused: wrong credentials, missing rights, an untrustworthy directory."""


class Unavailable(Error, ConnectionError):
    """The backend cannot be reached or does not answer just now. Asking again may help."""


class StorageError(Error, OSError):
    """The backend was reached and cannot do its work: disk full, read-only, damaged data."""


class Closed(Error):
    """The locker was closed, or belongs to the process that this one was forked from."""


class InternalError(Error):
    """A fault of this library. Please report it."""


def call_all(calls: Iterable[Callable[[], object]]) -> None:
    """Make all of these calls, also after one that fails; raise the first `Error`, a loss before others."""
    failed: list[Error] = []
    for call in calls:
        try:
            call()
        except Error as error:  # noqa: PERF203 - the others are made all the same.
            failed.append(error)
    raise_first(failed)


def raise_first(failed: Iterable[BaseException]) -> None:
    """Raise the first of these, if there is one; a loss before others, for it says more than what could not be told."""
    first = min(failed, key=lambda error: not isinstance(error, LockLost), default=None)
    if first is not None:
        raise first
