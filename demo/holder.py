"""Takes the lock, says so, and holds it until it is killed."""

import time

import windlass

with windlass.Lock("windlass-demo"):
    print("held", flush=True)
    time.sleep(60)
