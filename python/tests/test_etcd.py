"""Locks in etcd: what is in it, who dies or is cut off, what cannot be. Other files test the rest with all backends."""

from __future__ import annotations

import asyncio
import functools
import pickle
import signal
import subprocess
import threading
import time
import traceback
import uuid

import pytest
from conftest import PATIENCE, ends, in_thread, longer_until, python, until, waiters
from etcd import PASSWORD, PASSWORD_IN_URL, Etcd, Network, port_to_keep

import windlass
from windlass import aio

# As short as etcd's own leases can be.
TTL = 2
# What a take-over takes beyond the TTL at the most: etcd's own second, and a busy machine. Less than the default TTL.
SLACK = 6
# For how long to ask an etcd that is away, and find out.
TO_TRY = 3


@pytest.fixture
def prefix():
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def locker(etcd, prefix):
    """A locker that leaves nothing behind, also while it lives on."""
    with windlass.connect(etcd.url(prefix), ttl=TTL) as locker:
        yield locker
        until(lambda: etcd.keys(prefix) == [])


def test_a_held_lock_is_a_key_below_the_prefix(etcd, prefix, locker):
    with locker.lock("deploy") as held:
        [key], [entry] = etcd.keys(prefix), etcd.entries(prefix)
        assert key.startswith(f"/{prefix}/deploy/")
        assert entry["create_revision"] == held.fencing_token
        assert etcd.keys(f"{prefix}/deploy") == [key]
    assert etcd.keys(prefix) == []
    with locker.lock("a/b"):
        [key] = etcd.keys(prefix)
        assert key.startswith(f"/{prefix}/a%2Fb/")


def test_a_prefix_of_several_parts_and_none(etcd, prefix):
    with windlass.connect(etcd.url(f"{prefix}/team a")) as locker, locker.lock("job"):
        [key] = etcd.keys(prefix)
        assert key.startswith(f"/{prefix}/team a/job/")
    with windlass.connect(f"etcd://{etcd.host}") as locker, locker.lock(prefix):
        assert len(etcd.keys(f"windlass/{prefix}")) == 1


def test_raw_names_are_those_of_others(etcd, prefix):
    with windlass.connect(f"{etcd.url(prefix)}?raw_names=true") as locker, locker.lock("a/b"):
        [key] = etcd.keys(prefix)
        assert key.startswith(f"/{prefix}/a/b/")


def test_all_locks_of_a_locker_hang_on_one_lease(etcd, prefix, locker):
    with locker.lock("a"), locker.lock("b", mode="shared"), locker.rlock("c"), locker.semaphore("d", 2):
        assert len(etcd.leases(prefix)) == 1
        with windlass.connect(etcd.url(prefix), ttl=TTL) as other, other.lock("e"):
            assert len(etcd.leases(prefix)) == 2


def test_locks_without_a_locker_share_one(etcd, prefix):
    program = """
        import asyncio, sys, windlass
        from windlass import aio

        async def main():
            async with aio.Lock("a"):
                with windlass.Lock("b"), windlass.RLock("c"), windlass.Semaphore("d", 2):
                    print("ready", flush=True)
                    sys.stdin.readline()

        asyncio.run(main())
    """
    process = python(program, WINDLASS_URL=etcd.url(prefix))
    assert process.stdout.readline() == "ready\n"
    assert len(etcd.keys(prefix)) == 4
    assert len(etcd.leases(prefix)) == 1
    ends(process)
    assert etcd.keys(prefix) == []


def test_one_shared_locker_for_a_url(etcd, prefix):
    shared = functools.cache(windlass.connect)
    url, other = etcd.url(prefix), etcd.url(f"{prefix}/other")
    assert shared(url) is not shared(other)
    gate = threading.Barrier(3)

    def work(name):
        with shared(url).lock(name):
            gate.wait(PATIENCE)
            gate.wait(PATIENCE)

    working = [in_thread(work, name) for name in ("a", "b")]
    gate.wait(PATIENCE)
    assert len(etcd.keys(prefix)) == 2
    assert len(etcd.leases(prefix)) == 1
    gate.wait(PATIENCE)
    for result in working:
        result()
    shared(url).close()
    shared(other).close()


def test_etcdctl_lock_and_ours_take_turns(etcd, prefix, locker):
    theirs = subprocess.Popen(etcd.command("lock", f"--ttl={TTL}", f"/{prefix}/job"), stdout=subprocess.PIPE, text=True)
    with theirs:
        assert theirs.stdout.readline().startswith(f"/{prefix}/job/")
        assert not locker.lock("job").acquire(blocking=False)
        for timeout in longer_until(lambda: caught.value.waiting):
            with pytest.raises(windlass.Timeout) as caught, locker.lock("job", timeout=timeout):
                pytest.fail("the body ran")
        assert caught.value.waiting.holders[0].owner.startswith("the lease ")
        ours = locker.lock("job")
        acquired = in_thread(ours.acquire)
        until(lambda: waiters(locker, "job") == 1)
        theirs.send_signal(signal.SIGINT)
        assert acquired()
        ours.release()


def test_the_call_back_of_success_comes_first(etcd, prefix, locker):
    told = []

    def on_acquired(notice):
        # The lock is held by now, and nothing else has been done with it.
        taken = windlass.connect(etcd.url(prefix)).lock("job").acquire(blocking=False)
        told.append((notice.name, notice.fencing_token, taken))

    with locker.lock("job", on_acquired=on_acquired) as held:
        assert told == [("job", held.fencing_token, False)]


def test_the_random_delay_is_part_of_the_hold(locker):
    begun, delays = [], []
    lock = locker.lock("job", random_delay=0.2, on_acquired=lambda _: begun.append(time.monotonic()))
    for _ in range(8):
        with lock:
            delays.append(time.monotonic() - begun[-1])
            # What `run` tells is how long the lock was held.
            assert lock.held.held_for >= delays[-1] - 0.01
    # With eight delays of up to 0.2 s, less than this comes up once in a hundred million runs.
    assert sum(delays) > 0.08
    assert len({round(delay, 4) for delay in delays}) > 1


def test_run_tells_for_how_long(locker):
    result, held_for = locker.lock("job").run(lambda: time.sleep(0.05) or "done")
    assert result == "done"
    assert held_for >= 0.05


def test_max_hold_is_told_at_once_and_ends_the_hold_by_the_ttl(etcd, prefix, locker):
    told, too_long = [], threading.Event()
    lock = locker.lock(
        "job", max_hold=0.2, ttl=5, on_held_too_long=lambda notice: (told.append(notice), too_long.set())
    )
    with pytest.raises(windlass.LockLost) as caught, lock as held:
        assert too_long.wait(PATIENCE)
        # Nobody is let in under work that is only just told.
        assert held.is_held()
        assert not locker.lock("job").acquire(blocking=False)
        # There are no ticks: the hold ends with the lease, which is no longer renewed, and only then is the lock free.
        assert held.wait_lost(PATIENCE) == "expired"
        assert held.held_for > 3
        assert locker.lock("job").acquire(timeout=PATIENCE)
    assert caught.value.reason == "expired"
    [notice] = told
    assert (notice.name, notice.lost) == ("job", None)
    assert 0.2 <= notice.held_for < 5


def test_max_hold_cancels_a_task(etcd, prefix):
    async def main():
        told = []
        async with await aio.connect(etcd.url(prefix), ttl=TTL) as locker:
            lock = locker.lock("job", max_hold=0.2, on_held_too_long=told.append)
            with pytest.raises(windlass.LockLost) as caught:
                async with lock:
                    await asyncio.Event().wait()
            assert caught.value.reason == "expired"
            assert len(told) == 1
            assert await locker.lock("job").acquire(timeout=PATIENCE)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_operator_who_deletes_the_key_is_noticed(etcd, prefix, locker):
    with pytest.raises(windlass.LockLost) as caught, locker.lock("job") as held:
        etcd.etcdctl("del", "--prefix", f"/{prefix}/job/", check=True)
        assert held.wait_lost(PATIENCE) == "force_released"
    assert caught.value.reason == "force_released"


def test_a_lease_that_is_revoked_is_noticed(etcd, prefix, locker):
    with pytest.raises(windlass.LockLost) as caught, locker.lock("job", ttl=60) as held:
        [lease] = etcd.leases(prefix)
        etcd.etcdctl("lease", "revoke", f"{lease:x}", check=True)
        assert held.wait_lost(PATIENCE / 2) == "session_ended"
    assert caught.value.reason == "session_ended"


HOLDER = """
    import sys, windlass
    try:
        with windlass.connect(sys.argv[1], ttl=2).lock("job") as held:
            print(held.fencing_token, flush=True)
            sys.stdin.readline()
            print(held.is_held(), flush=True)
    except windlass.LockLost as error:
        print(error.reason)
"""


def test_a_process_that_is_killed_frees_the_lock_by_its_lease(etcd, prefix, locker):
    process = python(HOLDER, etcd.url(prefix))
    token = int(process.stdout.readline())
    process.kill()
    killed = time.monotonic()
    process.communicate()
    with locker.lock("job", timeout=PATIENCE) as held:
        assert held.fencing_token > token
        assert time.monotonic() - killed < TTL + SLACK


def test_a_process_that_is_stopped_knows_when_it_goes_on(etcd, prefix, locker):
    process = python(HOLDER, etcd.url(prefix))
    token = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    with locker.lock("job", timeout=PATIENCE) as held:
        assert held.fencing_token > token
        process.send_signal(signal.SIGCONT)
        assert ends(process) == "False\nexpired\n"
        held.check()


def test_ctrl_c_leaves_no_place_behind(etcd, prefix, locker):
    program = """
        import sys, windlass
        locker = windlass.connect(sys.argv[1])
        try:
            locker.lock("job", on_wait=lambda _: print("waiting", flush=True)).acquire()
        except KeyboardInterrupt:
            print("interrupted")
    """
    with locker.lock("job"):
        process = python(program, etcd.url(prefix))
        assert process.stdout.readline() == "waiting\n"
        assert len(etcd.keys(prefix)) == 2
        process.send_signal(signal.SIGINT)
        assert ends(process) == "interrupted\n"
        # Not only when its lease is over.
        assert len(etcd.keys(prefix)) == 1


@pytest.fixture
def network(etcd):
    network = Network(("127.0.0.1", etcd.port))
    yield network
    network.close()


@pytest.fixture
def far(etcd, prefix, network):
    """A locker over the network, which holds something all the time: its lease lives as long as it does."""
    with windlass.connect(etcd.url(prefix, host=network.host)) as far:
        with far.lock("kept") as kept:
            yield far
            kept.check()
            # Whatever was under way is gone.
            until(lambda: len(etcd.keys(prefix)) == 1)
        until(lambda: etcd.keys(prefix) == [])


@pytest.fixture
def near(etcd, prefix):
    """One for the same locks, not over the network."""
    with windlass.connect(etcd.url(prefix), ttl=TTL) as near:
        yield near


def test_retries_whose_answers_are_lost_get_one_grant(etcd, prefix, network, far):
    network.loses_answers = True
    lock = far.lock("job")
    acquired = in_thread(lock.acquire)
    until(lambda: far.metrics()["retries"] >= 2)
    # etcd has carried out what nobody has heard of.
    assert len(etcd.keys(f"{prefix}/job")) == 1
    network.heal()
    assert acquired()
    [status] = far.list("job")
    assert (len(status.holders), len(status.waiters)) == (1, 0)
    assert status.holders[0].fencing_token == lock.held.fencing_token
    lock.release()
    assert etcd.keys(f"{prefix}/job") == []


def test_nothing_is_left_of_who_gives_up_without_an_answer(network, far, near):
    network.loses_answers = True
    with pytest.raises((windlass.Timeout, windlass.Unavailable)), far.lock("job", timeout=1):
        pytest.fail("the body ran")
    network.heal()
    with near.lock("job", timeout=PATIENCE):
        pass


def test_nothing_is_left_of_a_task_that_is_cancelled_without_an_answer(etcd, prefix, network, far):
    async def main():
        async with await aio.connect(etcd.url(prefix, host=network.host)) as ours:
            async with ours.lock("another"):
                network.loses_answers = True
                task = asyncio.create_task(ours.lock("job").acquire())
                while not etcd.keys(f"{prefix}/job"):
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                network.heal()
                async with await aio.connect(etcd.url(prefix)) as other:
                    assert await other.lock("job").acquire(timeout=PATIENCE)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_release_whose_answer_is_lost_releases(network, far, near):
    lock = far.lock("job")
    assert lock.acquire()
    network.loses_answers = True
    released = in_thread(lock.release)
    with near.lock("job", timeout=PATIENCE):
        network.heal()
    try:
        released()
    except windlass.Unavailable:
        pass


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An etcd that asks who people are."""
    etcd = Etcd(tmp_path_factory.mktemp("guarded"), PATIENCE)
    etcd.guard()
    yield etcd
    etcd.kill()


# What is wrong with a URL; what is raised for it, also as Python's own kind, and what it says.
WRONG = {
    "nobody listens": (windlass.Unavailable, ConnectionError, "cannot connect"),
    "no etcd": (windlass.StorageError, OSError, "no etcd"),
    "a wrong password": (windlass.Denied, PermissionError, "refuses the user or its password"),
    "a user that is none": (windlass.Denied, PermissionError, "refuses the user or its password"),
    "no user": (windlass.Denied, PermissionError, "give a user and password"),
    "no right on the prefix": (windlass.Denied, PermissionError, "no right to read and write under the prefix"),
    "a user where nobody asks": (windlass.Denied, PermissionError, "authentication is not enabled"),
}


@pytest.fixture(params=WRONG)
def wrong(request, etcd, guarded, server):
    """A URL that leads to no lock, the endpoint that it names, and what is raised."""
    secret, host = "app:hunter2@", guarded.host
    if request.param == "nobody listens":
        host = f"127.0.0.1:{port_to_keep()}"
    elif request.param == "no etcd":
        host = server.split("//")[1]
    elif request.param == "a user where nobody asks":
        host = etcd.host
    elif request.param == "a user that is none":
        secret = "nobody:hunter2@"
    elif request.param == "no user":
        secret = ""
    elif request.param == "no right on the prefix":
        secret = f"app:{PASSWORD_IN_URL}@"
        return f"etcd://{secret}{host}/other", host, *WRONG[request.param]
    return f"etcd://{secret}{host}/app/locks", host, *WRONG[request.param]


def all_that_is_said(error):
    said = [str(error), repr(error), *traceback.format_exception(type(error), error, error.__traceback__)]
    while error is not None:
        said += [repr(vars(error)), repr(error.args), repr(pickle.dumps(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def is_told(error, host, says):
    assert says in str(error)
    assert error.backend.startswith(f"etcd://{host}/")
    assert host in str(error)
    said = all_that_is_said(error)
    for secret in ("hunter2", PASSWORD, PASSWORD_IN_URL):
        assert secret not in said


def test_errors_have_a_kind_and_an_endpoint_and_no_secret(wrong):
    url, host, kind, builtin, says = wrong
    # What is away is asked for until the timeout; what is refused, once.
    limit = TO_TRY if kind is windlass.Unavailable else PATIENCE
    locker = windlass.connect(url, ttl=TTL)
    assert "hunter2" not in f"{locker.url} {locker!r} {locker.lock('job')!r}"
    for ask in (
        locker.lock("job", timeout=limit).acquire,
        lambda: locker.lock("job").acquire(blocking=False),
        locker.semaphore("job", 2, timeout=limit).__enter__,
        lambda: locker.lock("job", timeout=limit).run(pytest.fail, "it ran"),
        locker.list,
    ):
        begun = time.monotonic()
        with pytest.raises(kind) as caught:
            ask()
        assert isinstance(caught.value, builtin)
        assert time.monotonic() - begun < TO_TRY + SLACK
        is_told(caught.value, host, says)
    # Nobody waits for what cannot be told to anybody.
    begun = time.monotonic()
    locker.close()
    assert time.monotonic() - begun < SLACK


def test_errors_are_the_same_in_asyncio(wrong):
    url, host, kind, builtin, says = wrong
    limit = TO_TRY if kind is windlass.Unavailable else PATIENCE

    async def main():
        async with await aio.connect(url, ttl=TTL) as locker:
            with pytest.raises(kind) as caught:
                async with locker.lock("job", timeout=limit):
                    pytest.fail("the body ran")
            assert isinstance(caught.value, builtin)
            is_told(caught.value, host, says)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_the_right_password_in_the_url_or_beside_it(guarded, monkeypatch):
    url = guarded.url("app/locks", user=f"app:{PASSWORD_IN_URL}@")
    with windlass.connect(url) as locker, locker.lock("job"):
        assert locker.url == guarded.url("app/locks")
    with pytest.raises(windlass.InvalidInput, match="WINDLASS_PASSWORD"):
        windlass.connect(guarded.url("app/locks", user="app@"))
    monkeypatch.setenv("WINDLASS_PASSWORD", PASSWORD)
    with windlass.connect(guarded.url("app/locks", user="app@")) as locker, locker.lock("job") as held:
        assert held.is_held()


def test_an_etcd_that_goes_away_and_comes_back(tmp_path):
    etcd = Etcd(tmp_path, PATIENCE)
    with windlass.connect(etcd.url("app"), ttl=TTL) as locker:
        with pytest.raises(windlass.LockLost) as caught, locker.lock("job") as held:
            etcd.kill()
            assert held.wait_lost(PATIENCE) == "unreachable"
        assert caught.value.reason == "unreachable"
        with pytest.raises(windlass.Unavailable) as caught, locker.lock("job", timeout=TO_TRY):
            pytest.fail("the body ran")
        # The latter where another request has just found that it cannot.
        says = next(filter(str(caught.value).__contains__, ["cannot connect", "does not answer"]), "cannot connect")
        is_told(caught.value, etcd.host, says)
        acquired = in_thread(lambda: locker.lock("job").run(lambda: "again"))
        etcd.start()
        assert acquired()[0] == "again"
    etcd.kill()
