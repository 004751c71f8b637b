from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path

import pytest
from etcd import SHELL, Etcd
from kubernetes import Kubernetes

import windlass

# Long enough for the slowest machine: no test waits for it to pass.
PATIENCE = float(os.environ.get("PATIENCE", "60"))


@pytest.fixture(scope="session")
def server():
    """The URL of a lock server, without a namespace."""
    command = [sys.executable, "-m", "windlass", "serve", "--listen", "127.0.0.1:0", "--ephemeral"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "serving locks at" in line)
        yield line.split(" at ")[1].split("/NAMESPACE")[0]
        process.terminate()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """An etcd that no test harms."""
    etcd = Etcd(tmp_path_factory.mktemp("etcd"), PATIENCE)
    yield etcd
    etcd.kill()


@pytest.fixture(scope="session")
def redis(tmp_path_factory):
    """The socket of a Redis that no test harms."""
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "socket"
    command = ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder]
    shell = ["sh", "-c", SHELL, folder / "log", *command]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        until(lambda: subprocess.run(["redis-cli", "-s", socket, "ping"], capture_output=True).returncode == 0)
        yield socket
        process.communicate("\n")


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory, etcd):
    """An API server of Kubernetes that no test harms."""
    kubernetes = Kubernetes(tmp_path_factory.mktemp("kubernetes"), etcd, PATIENCE)
    yield kubernetes
    kubernetes.kill()


@pytest.fixture(params=["memory", "file", "http", "etcd", "redis", "kubernetes"])
def url(request, tmp_path):
    """Locks of this test alone: in memory, in files, in a server, in etcd, in Redis, in Kubernetes."""
    if request.param == "http":
        return f"{request.getfixturevalue('server')}/{uuid.uuid4()}"
    if request.param == "etcd":
        return request.getfixturevalue("etcd").url(f"test-{uuid.uuid4()}")
    if request.param == "kubernetes":
        return request.getfixturevalue("kubernetes").url(f"test-{uuid.uuid4()}")
    if request.param == "redis":
        return f"redis+unix://{request.getfixturevalue('redis')}?namespace={uuid.uuid4()}"
    return f"memory:{tmp_path}" if request.param == "memory" else f"file://{tmp_path}"


@pytest.fixture
def file_url(tmp_path):
    return f"file://{tmp_path}"


@pytest.fixture
def locker(url):
    with windlass.connect(url) as locker:
        yield locker


def until(condition):
    """Wait until a condition holds that nothing tells of."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def longer_until(heard):
    """Timeouts of waits in vain, each longer than the last, until one has heard for whom, however slow the machine."""
    timeout = 0.5
    while True:
        yield timeout
        if heard() or timeout > PATIENCE:
            return
        timeout *= 2


def waiters(locker, name):
    return sum(len(status.waiters) for status in locker.list() if status.name == name)


def in_thread(function, *args):
    """Run a function in a thread; the returned function waits for it and gives what it gave."""
    outcome = []

    def run():
        try:
            outcome.append((function(*args), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(PATIENCE)
        assert not thread.is_alive()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def innermost(error):
    """Give the first of the exceptions from which this one arose."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def python(program, *args, **environment):
    """Start a Python program that is given the file URL of a test."""
    package = str(Path(windlass.__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def ends(process, status=0):
    """Wait for a program, which must end with this status and say nothing on stderr. Give what it printed."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (status, "")
    return out
