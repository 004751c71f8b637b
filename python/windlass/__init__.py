"""One lock, everywhere: the same named lock, with the same guarantees, for threads, processes and machines.

>>> import windlass
>>> with windlass.connect("memory:doc") as locker:
...     with locker.lock("deploy", timeout=30) as held:
...         token = held.fencing_token  # for the resource, which refuses a smaller one than it has seen

`windlass.Lock("deploy")` needs no locker: it lives in `$WINDLASS_URL`, or in files of this user on this machine.
`windlass.aio` is the same for asyncio.
"""

from __future__ import annotations

from ._errors import (
    Closed,
    Denied,
    Error,
    InternalError,
    InvalidInput,
    InvalidName,
    LockLost,
    NotHeld,
    StorageError,
    Timeout,
    Unavailable,
    Unsupported,
)
from ._lock import Lock, LockAll, RLock, Semaphore
from ._locker import Locker, connect, default_locker
from ._windlass import Held

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import aio
    from ._seen import Holder, LockOptions, Notice, Status, Waiter, Waiting

__all__ = [
    "Closed",
    "Denied",
    "Error",
    "Held",
    "Holder",
    "InternalError",
    "InvalidInput",
    "InvalidName",
    "Lock",
    "LockAll",
    "LockLost",
    "LockOptions",
    "Locker",
    "NotHeld",
    "Notice",
    "RLock",
    "Semaphore",
    "Status",
    "StorageError",
    "Timeout",
    "Unavailable",
    "Unsupported",
    "Waiter",
    "Waiting",
    "aio",
    "connect",
    "default_locker",
]

for _error in (
    Closed, Denied, Error, InternalError, InvalidInput, InvalidName, LockLost, NotHeld, StorageError, Timeout,
    Unavailable, Unsupported,
):  # fmt: skip
    _error.__module__ = "windlass"
del _error


def __getattr__(name: str) -> object:
    """Load what most programs do not need when it is asked for."""
    if name == "aio":
        from importlib import import_module

        return import_module("windlass.aio")
    if name in {"Holder", "LockOptions", "Notice", "Status", "Waiter", "Waiting"}:
        from . import _seen

        return getattr(_seen, name)
    raise AttributeError(f"module 'windlass' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
