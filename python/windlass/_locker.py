"""A connection to where locks live."""

from __future__ import annotations

import atexit
from weakref import WeakSet

from . import _windlass
from ._lock import Lock, LockAll, RLock, Semaphore

TYPE_CHECKING = False
if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from ._seen import CommonOptions, Holder, LockOptions, Status
    from ._windlass import Held

# For how many seconds the end of the interpreter may be held up by releasing what is still held.
_EXIT_PATIENCE = 2.0

_open: WeakSet[_Base] = WeakSet()


class _Base:
    """What the lockers of both faces have in common."""

    __slots__ = ("__weakref__", "_native")

    def __init__(self, native: _windlass.Locker) -> None:
        self._native = native
        _open.add(self)

    @property
    def url(self) -> str:
        """Where the locks live, as a URL without credentials."""
        return self._native.url

    def metrics(self) -> dict[str, int]:
        """Return what this locker has counted in this process; all figures only grow.

        acquired, waited, wait_micros, held_micros, timeouts, retries, renewals, late_renewals, and lost_REASON for
        each reason. Times are in microseconds.
        """
        return self._native.metrics()

    def capabilities(self) -> dict[str, bool]:
        """Return what the backend can promise.

        shared, permit, downgrade, upgrade, steal, force_release, fair_between_processes, hand_on_between_processes,
        forgets_names, fencing_token, see, keep_place.
        """
        return self._native.capabilities()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class Locker(_Base):
    """A connection to where locks live, made by `connect`. It makes locks.

    It can be shared by threads, and works in a child of `fork`, which holds nothing that its parent holds.
    `with connect(...) as locker` closes it at the end.
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
        """Return the locks of these names, to be taken together, all or none, by `with`.

        `timeout` is for all together. Naming a lock twice raises `InvalidInput` from `with`.

        >>> import windlass
        >>> with windlass.connect("memory:all-doc").acquire_all(["b", "a"]) as helds:
        ...     [held.name for held in helds]
        ['b', 'a']

        """
        return LockAll(names, locker=self, **options)

    def attach(self, ticket: str) -> Held:
        """Take up a held lock from a ticket, which `Held.detach` gave: this locker renews and releases it from now on.

        What comes back is held already; `with locker.attach(ticket) as held` releases it at the end.

        Raises:
            NotHeld: The claim has run out, was released, or belongs to a process that cannot hand it on.
            InvalidInput: This is no ticket.

        >>> import windlass
        >>> locker = windlass.connect("memory:attach-doc")
        >>> with locker.lock("deploy") as held:
        ...     ticket = held.detach()
        >>> locker.attach(ticket).is_held()
        True

        """
        held: Held = self._native.attach(ticket, asynchronous=False).wait()
        return held

    def release(self, ticket: str) -> None:
        """Give back what a ticket is for: the place in the queue that `keep_place` kept, or what `Held.detach` left.

        One that is not there any more is no error.

        Raises:
            InvalidInput: This is no ticket, or this locker has its claim: release that.

        """
        self._native.release(ticket).wait()

    def list(self, prefix: str = "") -> list[Status]:
        """Return who holds and who waits, for the names that begin with `prefix`, sorted by name."""
        return self._native.list(prefix).wait()

    def watch(self, prefix: str = "") -> Iterator[Status]:
        """Return the locks whose names begin with `prefix`, and then each one again whenever it has changed.

        The iterator waits for changes without end. A lock that is free comes once more without holders.
        """
        changes = self._native.watch(prefix).wait()

        def each() -> Iterator[Status]:
            while (status := changes.next().wait()) is not None:
                yield status

        return each()

    def force_release(self, name: str, fencing_token: int | None = None) -> builtins.list[Holder]:
        """Free a lock as an operator: all its claims, or only the one with this fencing token.

        Whoever held it is told that it is lost, with the reason "force_released".

        Returns:
            Whom it was taken from; empty if nobody held it.

        """
        return self._native.force_release(name, fencing_token).wait()

    def close(self) -> None:
        """Release everything that is held through this locker, and let nobody acquire through it any more.

        Raises:
            Unavailable: The backend could not be told; what was held is then free when its TTL is over.

        """
        self._native.close().wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    url: str | None = None,
    *,
    ttl: float | None = None,
    owner: str | None = None,
    metadata: Mapping[str, str] | None = None,
    token: str | Callable[[], str] | None = None,
) -> Locker:
    """Connect to where locks live.

    Args:
        url: `memory:` or `memory:NAME`, the memory of this process; `file:///DIR`, files of this machine;
            `http://HOST:PORT/NAMESPACE` or `https://...`, a lock server; `etcd://[USER@]H1,H2,H3/PREFIX` or
            `etcds://...`, etcd; `redis://[USER@]HOST:PORT/DB` or `rediss://...`, Redis or Valkey, both with the
            password in `$WINDLASS_PASSWORD`; `k8s://NAMESPACE/leases`, a Kubernetes cluster as `kubectl` reaches it, or
            a pod its own; `lockgate+http://HOST:PORT`, lockgate's own server.
            Unless told otherwise `$WINDLASS_URL`, else files of this user on this machine.
        ttl: How many seconds a granted claim lives without renewal: 1 s to 1 h, 10 s unless told otherwise.
        owner: Who asks, for people to see: `user@host:pid` unless told otherwise.
        metadata: Something more about the program for people to see; 2 KiB in all at the most.
        token: The bearer token for a server, or a function that gives one: it is called on another thread when there is
            none yet, and again when the server refuses the one there is. Unless told otherwise `$WINDLASS_TOKEN`, else
            what is in the file `$WINDLASS_TOKEN_FILE`.

    Raises:
        InvalidInput: A URL or an option that is not known, with those that are.
        Denied: The directory is not safe to use.

    >>> import windlass
    >>> windlass.connect("memory:", ttl=15)
    <Locker memory:>
    >>> windlass.connect("http://127.0.0.1:7420/team-a", token=lambda: "a fresh token")
    <Locker http://127.0.0.1:7420/team-a>

    """
    return Locker(_windlass.connect(url, ttl=ttl, owner=owner, metadata=metadata, token=token).wait())


def default_locker() -> Locker:
    """Return the locker of the locks that are made without one: one for each process, made at first use."""
    return Locker(_windlass.default_locker())


@atexit.register
def _close_all() -> None:
    """Release what is still held when the interpreter ends."""
    _windlass.begin_exit(_EXIT_PATIENCE)
    natives = {id(locker._native): locker._native for locker in list(_open)}
    default = _windlass.default_if_made()
    for native in [*natives.values(), *([default] if default else [])]:
        try:  # noqa: SIM105 - contextlib would have to be loaded for it.
            native.close().wait(_EXIT_PATIENCE)
        except Exception:  # noqa: PERF203, S110 - nobody is left to tell, and a TTL frees what is still held.
            pass
