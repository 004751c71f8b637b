"""What is shown about locks, and the options of a lock. Loaded when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Literal, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping


class Holder(NamedTuple):
    """Who holds a lock."""

    owner: str
    """Who: `user@host:pid` unless told otherwise."""
    mode: str
    """How the lock is shared: "exclusive", "shared", "upgradable" or "permit"."""
    limit: int | None
    """For a permit: how many there are."""
    fencing_token: int
    """The number of the grant; 0 where a foreign client holds the lock that has none."""
    held_for: float | None
    """For how many seconds, where the backend knows."""
    metadata: dict[str, str]
    """What the program wanted to show."""


class Waiter(NamedTuple):
    """Who stands in line for a lock."""

    owner: str
    """Who: `user@host:pid` unless told otherwise."""
    mode: str
    """How it wants to share the lock: "exclusive", "shared", "upgradable" or "permit"."""
    limit: int | None
    """For a permit: how many there are."""
    waited_for: float | None
    """For how many seconds, where the backend knows."""
    metadata: dict[str, str]
    """What the program wanted to show."""


class Status(NamedTuple):
    """A lock as it stands."""

    name: str
    """Which lock."""
    holders: list[Holder]
    """Who holds it; empty if it is free."""
    waiters: list[Waiter]
    """Who stands in line, the next one first."""


class Waiting(NamedTuple):
    """Why one waits: what `on_wait` is told, and what a `Timeout` carries."""

    holders: list[Holder]
    """Who holds the lock."""
    place: int | None
    """One's place in the queue, 1 for the next in line; `None` where the backend cannot tell."""


class Notice(NamedTuple):
    """What callbacks about a held lock are told."""

    name: str
    """Which lock."""
    fencing_token: int
    """The number of the grant."""
    held_for: float
    """For how many seconds it has been held."""
    lost: str | None
    """Why it was lost, for `on_lost`."""


Mode = Literal["exclusive", "shared", "upgradable"]


class CommonOptions(TypedDict, total=False):
    """The options of every kind of lock. All lengths of time are in seconds."""

    timeout: float | None
    """How long to wait for the lock at the most; `None`, the default: for as long as it takes."""
    keep_place: float | None
    """With `timeout`: when it is over, keep the place in the queue for so long, an hour at the most. `Timeout.ticket`
    is then the ticket of the place, and `acquire` raises it, too. A turn that comes meanwhile waits for whoever has
    it, for the TTL at the most. Needs the capability `keep_place`."""
    ticket: str | None
    """Take up the place of an earlier acquire. One that is gone is no error: this one then waits at the end of the
    queue."""
    ttl: float | None
    """How long the granted claim lives without renewal: 1 s to 1 h; `None`, the default: that of the locker, 10 s."""
    max_hold: float | None
    """The longest hold: when it is over, `on_held_too_long` is called and renewal stops. `None`: no limit."""
    hold_at_least: float
    """The shortest hold: a release before that waits. 0 unless told otherwise."""
    random_delay: float
    """Waits a random time of up to this long after the lock was granted, holding it. 0 unless told otherwise."""
    owner: str | None
    """Who asks, for people to see: `user@host:pid` unless told otherwise."""
    metadata: Mapping[str, str] | None
    """Something more for people to see; 2 KiB in all at the most."""
    on_wait: Callable[[Waiting], Any] | None
    """Called when a wait begins. If it returns a context manager, that wraps the wait."""
    on_acquired: Callable[[Notice], Any] | None
    """Called when the lock has been granted, before anything else is done with it."""
    on_lost: Callable[[Notice], Any] | None
    """Called when the lock is lost, once, on a thread of its own (with `windlass.aio`: by the event loop)."""
    on_contended: Callable[[Notice], Any] | None
    """Called when somebody begins to wait for the lock while it is held, as `on_lost` is."""
    on_held_too_long: Callable[[Notice], Any] | None
    """Called when `max_hold` is over, as `on_lost` is."""


class LockOptions(CommonOptions, total=False):
    """The options of a lock. All lengths of time are in seconds."""

    mode: Mode
    """How to share the lock. "exclusive" unless told otherwise."""
    steal: bool
    """Take the lock from those who hold it, ahead of those who wait. They are told that it is lost."""
