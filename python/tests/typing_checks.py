"""What the type checkers are to infer. It is checked, not run."""

from __future__ import annotations

import sys

import windlass
from windlass import aio

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type


def sync(locker: windlass.Locker) -> None:
    with locker.lock("a", timeout=1, mode="shared", metadata={"k": "v"}) as held:
        assert_type(held, windlass.Held)
        assert_type(held.fencing_token, int)
        assert_type(held.detach(), str)
        assert_type(held.wait_lost(1), "str | None")
    with locker.semaphore("s", 2) as held, locker.rlock("r") as again, windlass.Lock("l") as default:
        assert_type(held, windlass.Held)
        assert_type(again, windlass.Held)
        assert_type(default, windlass.Held)
    with locker.acquire_all(["a", "b"], timeout=1) as helds:
        assert_type(helds, "list[windlass.Held]")
    with locker.attach("ticket") as attached:
        assert_type(attached, windlass.Held)
    assert_type(locker.lock("a", keep_place=60, ticket="ticket").acquire(timeout=1), bool)
    assert_type(windlass.Timeout().ticket, "str | None")
    assert_type(locker.list("p"), "list[windlass.Status]")
    for status in locker.watch():
        assert_type(status.waiters[0].waited_for, "float | None")

    @locker.lock("nightly")
    def nightly(count: int, *, dry: bool = False) -> str:
        return "x" * count if dry else ""

    assert_type(nightly(3, dry=True), str)
    assert_type(locker.lock("n").run(nightly, 3), "tuple[str, float]")


async def asynchronous(locker: aio.Locker) -> None:
    async with locker.lock("a", timeout=1, on_lost=print) as held:
        assert_type(held, aio.Held)
        assert_type(await held.wait_lost(), "str | None")
        assert_type(await held.upgrade(1), None)
    async with locker.acquire_all(["a", "b"]) as helds:
        assert_type(helds, "list[aio.Held]")
    assert_type(await locker.lock("a").acquire(), bool)
    assert_type(await locker.list(), "list[windlass.Status]")
    async for status in locker.watch("p"):
        assert_type(status.name, str)

    @locker.lock("nightly")
    async def nightly(count: int) -> str:
        return "x" * count

    assert_type(await nightly(3), str)
    assert_type(await locker.lock("n").run(nightly, 3), "tuple[str, float]")


def errors(error: windlass.Timeout) -> None:
    if error.waiting is not None:
        assert_type(error.waiting.holders[0].owner, str)
        assert_type(error.waiting.place, "int | None")
