"""Starts the workers, looks at what they did, and says whether a step was lost."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import windlass

HERE = Path(__file__).parent
WORKERS = {
    "python-1": [sys.executable, HERE / "worker.py"],
    "python-2": [sys.executable, HERE / "worker.py"],
    "shell": ["bash", HERE / "worker.sh"],
}
# Only where locks are in a server.
PAGE = {"page": ["node", HERE / "page.mjs"]}
SECONDS = 4
COLUMNS = 56

tty = sys.stdout.isatty()


@dataclass
class Turn:
    who: str
    asked: float
    got: float
    released: float


def main() -> int:
    # The default place, made by the first who comes; a name of our own, so that nobody is disturbed.
    os.environ.pop("WINDLASS_URL", None)
    print()
    title("Two Python processes and a shell script count up in one file, under one lock")
    row("Python", "with windlass.Lock(NAME): ...")
    row("shell", "windlass run NAME -- ./step.sh")
    row("set up", "nothing")

    turns, counted = race(SECONDS)
    show_turns(turns)
    show_waits(turns)
    show_hand_overs(turns)
    killed = kill_a_holder()
    title("The same three, unchanged, and a page in a browser, under a lock in a server, as from four machines")
    with server() as url:
        row("server", f"windlass serve --origin {os.environ['DEMO_ORIGIN']} &")
        row("set up", f"WINDLASS_URL={url}")
        row("page", "await locks.request(NAME, async lock => ...)")
        served, served_count = race(SECONDS, url=url, more=PAGE)
        show_turns(served, {**WORKERS, **PAGE})
        show_hand_overs(served)
    unlocked, unlocked_count = race(1, without_lock=True)

    title("Was a step lost?")
    row("in files", f"{len(turns)} steps taken, {counted} counted")
    row("in the server", f"{len(served)} steps taken, {served_count} counted")
    row("without a lock", f"{len(unlocked)} steps taken, {unlocked_count} counted")
    fair = {turn.who for turn in turns} == set(WORKERS) and {turn.who for turn in served} == {*WORKERS, *PAGE}
    good = (counted, served_count) == (len(turns), len(served)) and fair and killed < 1
    print()
    print(bold("Nobody lost a step." if good else "FAILED: a step was lost, or somebody was never served."))
    print()
    return 0 if good else 1


@contextmanager
def server() -> Iterator[str]:
    """Serve locks on a free port while they are wanted; give the URL of a namespace."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["DEMO_ORIGIN"] = f"http://127.0.0.1:{free_port()}"
        origin = ["--origin", os.environ["DEMO_ORIGIN"]]
        command = ["windlass", "serve", "--listen", "127.0.0.1:0", "--data-dir", directory, *origin]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            line = next((line for line in process.stderr if "serving locks at" in line), "")
            if not line:
                sys.exit("the server does not start")
            yield line.split(" at ")[1].split(";")[0].replace("NAMESPACE", "demo")
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as there:
        return there.getsockname()[1]


def race(
    seconds: float,
    *,
    without_lock: bool = False,
    url: str | None = None,
    more: dict[str, list[str | Path]] | None = None,
) -> tuple[list[Turn], int]:
    """All workers at once, when those of `more` are ready; their turns in order, and how far the file has counted."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "counter").write_text("0")
        environment = dict(os.environ, **({"DEMO_WITHOUT_LOCK": "1"} if without_lock else {}))
        environment |= {"WINDLASS_URL": url} if url else {}

        def start(name: str, command: list[str | Path], **how: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen([*command, name, directory, str(seconds)], env=environment, **how)

        slow = [start(name, command, stdout=subprocess.PIPE) for name, command in (more or {}).items()]
        for worker in slow:
            assert worker.stdout
            worker.stdout.readline()  # it is ready, or it has failed
        workers = slow + [start(name, command) for name, command in WORKERS.items()]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            sys.exit(f"a worker failed: {codes}")
        lines = (Path(directory) / "turns").read_text().splitlines()
        counted = int((Path(directory) / "counter").read_text().partition("\n")[0] or 0)
    turns = [Turn(who, *map(float, times)) for who, *times in map(str.split, lines)]
    return sorted(turns, key=lambda turn: turn.got), counted


def show_turns(turns: list[Turn], workers: Iterable[str] = WORKERS) -> None:
    title("Who had it: the first turns once all were there, from left to right")
    begin = max(next((i for i, turn in enumerate(turns) if turn.who == who), 0) for who in workers)
    for who in workers:
        row(who, "".join("#" if turn.who == who else "." for turn in turns[begin : begin + COLUMNS]))


def show_waits(turns: list[Turn]) -> None:
    title("Who waited for whom: for how many turns of the one on top, and for how long at most")
    row("", *columns("turns", *WORKERS, "at most"))
    for who in WORKERS:
        mine = [turn for turn in turns if turn.who == who]
        waited_for = [
            "-" if other == who else sum(waited_out(turns, other, turn) for turn in mine) for other in WORKERS
        ]
        longest = max(turn.got - turn.asked for turn in mine)
        row(who, *columns(len(mine), *waited_for, f"{longest * 1000:.0f} ms"))


def waited_out(turns: list[Turn], who: str, turn: Turn) -> int:
    return sum(other.who == who and other.released > turn.asked and other.got < turn.got for other in turns)


def show_hand_overs(turns: list[Turn]) -> None:
    title("Hand-over: from the last line of one's turn to the first line of the next one's, who was waiting")
    row("", *columns("number", "median", "p99"))
    waited = [(a, b) for a, b in pairwise(turns) if b.asked < a.released]
    for label, with_whom in {"Python to Python": "python", "with the page": "page", "with the shell": "shell"}.items():
        times = sorted((b.got - a.released) * 1000 for a, b in waited if slowest(a, b) == with_whom)
        if times:
            p99 = times[int(len(times) * 0.99)]
            row(label, *columns(len(times), f"{statistics.median(times):.2f} ms", f"{p99:.2f} ms"))
    print("  (a turn of the shell includes the start and end of its processes)")


def slowest(one: Turn, other: Turn) -> str:
    """Whose turns take longest to begin and end, of these two."""
    return next(kind for kind in ("shell", "page", "python") if one.who.startswith(kind) or other.who.startswith(kind))


def kill_a_holder() -> float:
    """How long it takes until the next in line has the lock of a holder that was killed."""
    title("kill -9 of a holder")
    with subprocess.Popen([sys.executable, HERE / "holder.py"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        killed = 0.0

        def kill() -> None:
            nonlocal killed
            time.sleep(0.5)
            killed = time.monotonic()
            holder.kill()

        threading.Thread(target=kill).start()
        with windlass.Lock("windlass-demo", on_wait=say_who_holds):
            took = time.monotonic() - killed
    row("killed", f"we have the lock {took * 1000:.1f} ms later")
    return took


def say_who_holds(waiting: windlass.Waiting) -> None:
    row("we wait", f"it is held by {waiting.holders[0].owner}")


def title(text: str) -> None:
    print()
    print(bold(text))


def row(label: str, *cells: str) -> None:
    print(f"  {label:<17}", *cells)


def columns(*cells: object) -> list[str]:
    return [f"{cell!s:>10}" for cell in cells]


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if tty else text


sys.exit(main())
