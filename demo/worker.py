"""Counts up in a file, one step a turn: worker.py NAME DIRECTORY SECONDS."""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import windlass

name, directory, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
lock = nullcontext() if "DEMO_WITHOUT_LOCK" in os.environ else windlass.Lock("windlass-demo")
end = time.time() + seconds

while time.time() < end:
    asked = time.time()
    with lock:
        got = time.time()
        # The first line: without a lock there can be a rest of another's number behind it, or nothing yet.
        value = int((directory / "counter").read_text().partition("\n")[0] or 0)
        time.sleep(0.002)  # whoever else is in here now loses a step
        (directory / "counter").write_text(str(value + 1))
        with (directory / "turns").open("a") as turns:
            turns.write(f"{name} {asked} {got} {time.time()}\n")
