"""Fork, spawn, and the end of the interpreter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import textwrap

import pytest
from conftest import PATIENCE, ends, in_thread, python, until, waiters

import windlass

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def child(work):
    """Run `work` in a forked child, which must return true."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(PATIENCE))
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_proxy_is_asked_for_what_is_on_this_machine(server):
    program = """
        import sys, windlass
        with windlass.connect(sys.argv[1]).lock("a", timeout=10) as held:
            print(held.name)
    """
    nobody = "http://127.0.0.1:9"
    process = python(program, f"{server}/proxied", HTTP_PROXY=nobody, http_proxy=nobody, ALL_PROXY=nobody, NO_PROXY="")
    assert ends(process) == "a\n"


@needs_fork
def test_a_child_holds_nothing_and_releases_nothing(url):
    locker = windlass.connect(url)
    lock, again = locker.lock("a"), locker.rlock("r")
    with lock as held, again:

        def work():
            assert not held.is_held()
            assert held.fencing_token == 0
            assert held.lost is None
            with pytest.raises(windlass.Closed):
                held.check()
            held.release()
            lock.release()
            again.release()
            if url.startswith("file:"):
                assert not locker.lock("a").acquire(blocking=False)
                assert not locker.rlock("r").acquire(blocking=False)
            with locker.lock("b") as other:
                assert other.is_held()
            return True

        assert child(work) == 0
        assert held.is_held()
        assert locker.lock("a").locked()
        held.check()


@needs_fork
def test_a_child_leaves_the_with_of_its_parent(file_url):
    locker = windlass.connect(file_url)

    def work():
        with locker.lock("a", timeout=0.01):
            return False

    with locker.lock("a") as held, locker.rlock("r") as again:
        pid = os.fork()
        if pid != 0:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert held.is_held()
            assert again.is_held()
            return
    # Only the child comes here.
    try:
        work()
    except windlass.Timeout:
        os._exit(0)
    finally:
        os._exit(1)


@needs_fork
def test_fork_while_other_threads_wait(url):
    locker = windlass.connect(url)
    with locker.lock("a"):
        results = [in_thread(locker.lock("a").acquire) for _ in range(3)]
        until(lambda: waiters(locker, "a") == 3)

        def work():
            with locker.lock("b"), locker.lock("c"):
                return not locker.lock("b").acquire(timeout=0.01)

        for _ in range(5):
            assert child(work) == 0
    locker.close()
    for result in results:
        try:
            result()
        except windlass.Error:
            pass


@needs_fork
def test_the_default_locker_works_in_a_child(file_url):
    program = """
        import os, sys, windlass
        with windlass.Lock("a") as held:
            if os.fork() == 0:
                taken = windlass.Lock("a").acquire(blocking=False)
                with windlass.Lock("b"):
                    os._exit(1 if taken or held.is_held() else 0)
            assert os.wait()[1] == 0
            print(held.is_held())
    """
    assert ends(python(program, WINDLASS_URL=file_url)) == "True\n"


@needs_fork
def test_a_lock_made_before_fork_is_taken_in_the_name_of_the_child(file_url):
    program = """
        import os, sys, windlass
        lock = windlass.Lock("a")
        def owner():
            with lock:
                [status] = windlass.default_locker().list("a")
                [holder] = status.holders
                return holder.owner
        # The locker has said who it is, before there is a child.
        assert owner().endswith(f":{os.getpid()}")
        pid = os.fork()
        if pid == 0:
            os._exit(0 if owner().endswith(f":{os.getpid()}") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(owner().endswith(f":{os.getpid()}"))
    """
    assert ends(python(program, WINDLASS_URL=file_url)) == "True\n"


def count(url, path, times):
    locker = windlass.connect(url)
    for _ in range(times):
        with locker.lock("counter"):
            value = int(path.read_text())
            path.write_text(str(value + 1))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_count_together(tmp_path, method):
    locks, path = tmp_path / "locks", tmp_path / "counter"
    locks.mkdir(mode=0o700)
    path.write_text("0")
    url = f"file://{locks}"
    context = multiprocessing.get_context(method)
    # Also with a locker that has threads of its own in the parent.
    with windlass.connect(url).lock("counter"):
        processes = [context.Process(target=count, args=(url, path, 50)) for _ in range(4)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert path.read_text() == "200"


def test_what_a_lock_holds_alone_is_released_at_the_end(server):
    url = f"{server}/at-the-end"
    program = """
        import sys, windlass
        lock = windlass.connect(sys.argv[1], ttl=3600).lock("a", hold_at_least=0.5)
        lock.acquire()
    """
    ends(python(program, url))
    with windlass.connect(url) as locker:
        assert locker.list() == []


def test_a_ticket_goes_to_another_process(file_url):
    locker = windlass.connect(file_url)
    if not locker.capabilities()["hand_on_between_processes"]:
        with locker.lock("a") as held:
            program = "import sys, windlass; windlass.connect(sys.argv[1]).attach(sys.argv[2])"
            process = python(program, file_url, held.detach())
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 1
        return
    with locker.lock("a") as held:
        ticket = held.detach()
    program = "import sys, windlass; print(windlass.connect(sys.argv[1]).attach(sys.argv[2]).is_held())"
    assert ends(python(program, file_url, ticket)) == "True\n"


EXITS = {
    "held": "lock = windlass.Lock('a'); lock.acquire()",
    "held, in a with": "windlass.Lock('a').__enter__(); sys.exit(0)",
    "held by a locker of its own": "locker = windlass.connect(sys.argv[1]); lock = locker.lock('a'); lock.acquire()",
    "daemons wait": """
        lock = windlass.Lock('a'); lock.acquire()
        begun = threading.Semaphore(0)
        for _ in range(4):
            waiting = windlass.Lock('a', on_wait=lambda _: begun.release())
            threading.Thread(target=waiting.acquire, daemon=True).start()
        for _ in range(4): begun.acquire()
    """,
    "daemons work": """
        begun = threading.Semaphore(0)
        def work():
            begun.release()
            while True:
                with windlass.Lock('a'): pass
        for _ in range(3): threading.Thread(target=work, daemon=True).start()
        for _ in range(3): begun.acquire()
    """,
    "callbacks are due": """
        held = windlass.Lock('a', on_lost=print).__enter__()
        windlass.default_locker().force_release('a')
        sys.stdout = open('/dev/null', 'w')
    """,
    "a task waits": """
        import asyncio
        from windlass import aio
        lock = windlass.Lock('a'); lock.acquire()
        async def main():
            task = asyncio.create_task(aio.Lock('a').acquire())
            await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "a loop is closed under a task": """
        import asyncio
        from windlass import aio
        lock = windlass.Lock('a'); lock.acquire()
        loop = asyncio.new_event_loop()
        begun = []
        async def wait():
            await aio.Lock('a', on_wait=begun.append).acquire()
        task = loop.create_task(wait())
        while not begun: loop.run_until_complete(asyncio.sleep(0))
        task._log_destroy_pending = False
        loop.close()
        lock.release()
    """,
    "watched": """
        changes = windlass.default_locker().watch()
        lock = windlass.Lock('a')
        with lock:
            next(changes)
            threading.Thread(target=lambda: list(changes), daemon=True).start()
    """,
}


@pytest.mark.parametrize("program", [pytest.param(program, id=name) for name, program in EXITS.items()])
def test_the_interpreter_ends_cleanly(file_url, program):
    program = "import sys, threading, windlass\n" + textwrap.dedent(program)
    ends(python(program, file_url, WINDLASS_URL=file_url))
    with windlass.connect(file_url) as locker:
        assert locker.list() == []


@needs_fork
def test_exit_in_a_child(file_url):
    program = """
        import os, sys, windlass
        lock = windlass.Lock("a")
        with lock:
            pid = os.fork()
            if pid == 0: sys.exit(0)
            assert os.wait()[1] == 0
            print(lock.locked())
    """
    assert ends(python(program, WINDLASS_URL=file_url)) == "True\n"


def test_ctrl_c_in_asyncio_run(file_url):
    program = """
        import asyncio, sys
        from windlass import aio
        async def main():
            locker = await aio.connect(sys.argv[1])
            await locker.lock("a", on_wait=lambda _: print("waiting", flush=True)).acquire()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
    """
    with windlass.connect(file_url) as locker, locker.lock("a"):
        process = python(program, file_url)
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert ends(process) == "interrupted\n"


def test_no_more_descriptors_is_an_error_and_not_the_end(file_url):
    program = """
        import os, resource, sys, windlass
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for url in "memory:", sys.argv[1]:
            try:
                windlass.connect(url)
            except windlass.Unavailable as error:
                print("ulimit" in str(error))
        for descriptor in taken:
            os.close(descriptor)
        with windlass.connect(sys.argv[1]).lock("a") as held:
            print(held.is_held())
    """
    assert ends(python(program, file_url)) == "True\nTrue\nTrue\n"


def contend(locker, process):
    """Wait for what a process holds, and let it go on when it is known to be waited for."""
    acquired = in_thread(locker.lock("a").acquire)
    until(lambda: waiters(locker, "a") == 1)
    process.stdin.write("\n")
    process.stdin.flush()
    return acquired


def test_no_more_threads_is_no_end_of_the_care_for_locks(file_url):
    program = """
        import resource, sys, threading, windlass
        lost = threading.Event()
        lock = windlass.connect(sys.argv[1]).lock(
            "a", on_contended=lambda _: print("contended", flush=True), on_lost=lambda _: lost.set()
        )
        lock.acquire()
        held = lock.held
        # Less than a thread's stack is left, and more than anything else needs.
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 1_500_000, resource.RLIM_INFINITY))
        print("short of threads", flush=True)
        sys.stdin.readline()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("no longer", flush=True)
        print(lost.wait(30), held.is_held())
    """
    with windlass.connect(file_url) as locker:
        process = python(program, file_url)
        assert process.stdout.readline() == "short of threads\n"
        # Contended while there is no thread to say so.
        acquired = contend(locker, process)
        assert sorted(process.stdout.readline() for _ in range(2)) == ["contended\n", "no longer\n"]
        locker.force_release("a")
        assert acquired()
        assert ends(process) == "True False\n"


def test_a_holder_hears_although_there_was_no_thread_for_it_at_first(file_url):
    program = """
        import resource, sys, windlass
        locker = windlass.connect(sys.argv[1])
        with locker.lock("before"): pass
        lock = locker.lock("a", on_contended=lambda _: print("contended", flush=True))
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        # Less than the stack of a thread of ours.
        resource.setrlimit(resource.RLIMIT_AS, (size + 128 * 1024, resource.RLIM_INFINITY))
        lock.acquire()
        print("held", flush=True)
        sys.stdin.readline()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stdin.readline()
    """
    with windlass.connect(file_url) as locker:
        process = python(program, file_url)
        assert process.stdout.readline() == "held\n"
        acquired = contend(locker, process)
        assert process.stdout.readline() == "contended\n"
        assert ends(process) == ""
        assert acquired()


def test_import_is_lean():
    heavy = "print(sorted({'asyncio', 'typing', 'inspect', 'threading', 'dataclasses'} & set(sys.modules)))"
    ours = python(f"import sys, windlass; {heavy}; windlass.aio, windlass.Status")
    assert ends(ours).splitlines() == ends(python(f"import sys; {heavy}")).splitlines()


def test_the_command():
    process = python("import sys; sys.argv = ['windlass', '--help']; from windlass.__main__ import main")
    assert "windlass" in ends(process)
