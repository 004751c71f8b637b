"""One bell for each event loop: how an operation that was woken elsewhere goes on there."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from ._windlass import Bell

_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()


def find() -> tuple[asyncio.AbstractEventLoop, Bell]:
    """Return the running event loop and its bell."""
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        bell = Bell(loop.call_soon_threadsafe)
        if bell.fileno() >= 0:
            loop.add_reader(bell.fileno(), bell.answer)
        _bells[loop] = bell
    return loop, bell
