"""What goes on while a thread waits."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, ends, in_thread, python, until, waiters

import windlass

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

WAIT_UNTIL_STOPPED = """
    import signal, sys, windlass
    locker = windlass.connect(sys.argv[1])
    class Stopped(Exception): pass
    def stop(*_): raise Stopped
    signal.signal(signal.SIGTERM, stop)
    try:
        with locker.lock("a", timeout=None, on_wait=lambda _: print("waiting", flush=True)):
            print("taken")
    except (KeyboardInterrupt, Stopped) as error:
        print(type(error).__name__, len(locker.list()[0].waiters), flush=True)
"""


def sleeps(process):
    """Whether a process sleeps in poll(2), where that can be seen: what a callback raises is another matter."""
    about = Path(f"/proc/{process.pid}")
    if not about.exists():
        return True
    # One that runs has no place to be seen at, and neither has any where they are hidden.
    runs = "State:\tS" not in (about / "status").read_text()
    where = (about / "wchan").read_text() if (about / "wchan").exists() else ""
    return not runs and ("poll" in where or where in ("", "0"))


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Stopped")])
def test_a_signal_ends_the_wait_at_once(file_url, number, name):
    with windlass.connect(file_url) as locker, locker.lock("a"):
        process = python(WAIT_UNTIL_STOPPED, file_url)
        assert process.stdout.readline() == "waiting\n"
        until(lambda: waiters(locker, "a") == 1 and sleeps(process))
        start = time.monotonic()
        process.send_signal(number)
        assert process.stdout.readline() == f"{name} 0\n"
        assert time.monotonic() - start < 2, "it was not at once"
        ends(process)


def test_a_handler_that_does_not_raise_does_not_end_the_wait(file_url):
    program = """
        import signal, sys, windlass
        locker = windlass.connect(sys.argv[1])
        signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
        with locker.lock("a", on_wait=lambda _: print("waiting", flush=True)):
            print("taken")
    """
    with windlass.connect(file_url) as locker:
        with locker.lock("a"):
            process = python(program, file_url)
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "handled\n"
        assert ends(process) == "taken\n"


def test_ctrl_c_in_a_callback_reaches_the_program(file_url):
    program = """
        import os, signal, sys, windlass
        locker = windlass.connect(sys.argv[1])
        try:
            with locker.lock("a", on_wait=lambda _: os.kill(os.getpid(), signal.SIGINT)):
                print("taken")
        except KeyboardInterrupt:
            print("interrupted")
    """
    with windlass.connect(file_url) as locker, locker.lock("a"):
        assert ends(python(program, file_url)) == "interrupted\n"


def test_ctrl_c_at_the_end_of_a_with_goes_before_what_its_body_raised(file_url):
    program = """
        import os, signal, sys, threading, windlass
        locker = windlass.connect(sys.argv[1])
        try:
            with locker.lock("a", hold_at_least=60):
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                raise LookupError("of the body")
        except KeyboardInterrupt as interrupt:
            print(repr(interrupt.__context__))
    """
    assert ends(python(program, file_url)) == "LookupError('of the body')\n"


def test_a_timeout_of_the_programs_own_is_not_ours(file_url):
    program = """
        import signal, sys, windlass
        locker = windlass.connect(sys.argv[1])

        def ring(*_):
            raise TimeoutError("of the program")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with locker.lock("a"):
            try:
                print(locker.lock("a").acquire())
            except TimeoutError as error:
                print(error)
    """
    assert ends(python(program, file_url)) == "of the program\n"


def test_other_threads_run_meanwhile(locker):
    with locker.lock("a"):
        result = in_thread(locker.lock("a").acquire)
        until(lambda: waiters(locker, "a") == 1)
        assert sum(range(100_000)) > 0
    assert result()


def test_waiters_are_served_in_order(locker):
    order, lock = [], locker.lock("a")

    def take(number):
        with lock:
            order.append(number)

    results = []
    with lock:
        for number in range(5):
            results.append(in_thread(take, number))
            until(lambda number=number: waiters(locker, "a") == number + 1)
    for result in results:
        result()
    assert order == [0, 1, 2, 3, 4]


def test_many_threads_wait_and_give_up(locker):
    gone = threading.Barrier(9)

    def give_up():
        assert not locker.lock("a").acquire(timeout=0.05)
        gone.wait(PATIENCE)

    with locker.lock("a"):
        results = [in_thread(give_up) for _ in range(8)]
        gone.wait(PATIENCE)
        for result in results:
            result()
        until(lambda: waiters(locker, "a") == 0)
