"""Does the built package work on this interpreter? The tests proper run on one version of Python only."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import windlass
from windlass import aio


async def in_asyncio(url: str) -> int:
    locker = await aio.connect(url)
    async with locker.lock("smoke") as held:
        return held.fencing_token


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        url = f"file://{directory}"
        locker = windlass.connect(url)
        lock = locker.lock("smoke")
        with lock as held:
            assert lock.locked()
            assert held.is_held()
            first = held.fencing_token
            assert not locker.lock("smoke").acquire(blocking=False)
        assert not lock.locked()
        assert asyncio.run(in_asyncio(url)) > first
        program = Path(sysconfig.get_path("scripts")) / "windlass"
        run = [str(program), "run", "--url", url, "smoke", "--", "sh", "-c", "exit 7"]
        assert subprocess.run(run, check=False).returncode == 7
    print("works on Python", sys.version.split()[0])


main()
