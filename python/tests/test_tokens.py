"""Tokens for a server, given as text, by a function, or from the event loop."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time

import pytest
from conftest import PATIENCE

import windlass
from windlass import aio

SECRET = b"0123456789abcdef0123456789abcdef"
# How long after their end the server takes tokens, because of clocks that differ.
LEEWAY = 30


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A namespace of a server that wants tokens."""
    key = tmp_path_factory.mktemp("server") / "key"
    key.write_bytes(SECRET)
    command = [sys.executable, "-m", "windlass", "serve", "--listen", "127.0.0.1:0", "--ephemeral"]
    command += ["--jwt-key", str(key)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "serving locks at" in line)
        yield line.split(" at ")[1].split("/NAMESPACE")[0] + "/team"
        process.terminate()


def token(seconds):
    """Make a token that the server takes for so long."""

    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = {
        "sub": "somebody",
        "aud": "windlass",
        "exp": int(time.time()) - LEEWAY + seconds,
        "locks": [{"names": "team/*", "rights": ["acquire"]}],
    }
    parts = [part(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = b".".join(parts)
    return b".".join([text, part(hmac.digest(SECRET, text, hashlib.sha256))]).decode()


class Source:
    """Gives tokens that live for two seconds, and knows how often and where it was asked."""

    def __init__(self):
        self.threads = []

    def __call__(self):
        self.threads.append(threading.current_thread())
        return token(2)


def test_text(url):
    with windlass.connect(url, token=token(60)) as locker, locker.lock("text") as held:
        assert held.is_held()


@pytest.mark.parametrize("wrong", ["no.such.token", "two\nlines", ""])
def test_a_wrong_token_is_refused_at_once(url, wrong):
    with windlass.connect(url, token=wrong) as locker, pytest.raises(windlass.Denied, match="token"):
        locker.lock("wrong", timeout=PATIENCE).acquire()


@pytest.mark.parametrize("wrong", [1, b"bytes", object()])
def test_what_is_no_token(url, wrong):
    with pytest.raises(TypeError, match="token is text"):
        windlass.connect(url, token=wrong)


def test_a_place_that_asks_for_none():
    with pytest.raises(windlass.InvalidInput, match="asks for none"):
        windlass.connect("memory:", token="token")


def test_a_function_is_asked_as_often_as_tokens_end(url):
    source = Source()
    begun = time.monotonic()
    with windlass.connect(url, ttl=3, token=source) as locker, locker.lock("function") as held:
        while time.monotonic() < begun + 6:
            held.check()
            time.sleep(0.1)
    assert 2 <= len(source.threads) <= 2 + (time.monotonic() - begun)
    assert threading.main_thread() not in source.threads


def test_what_a_function_raises_is_the_cause(url):
    def source():
        raise ValueError("the vault is sealed")

    with windlass.connect(url, token=source) as locker:
        with pytest.raises(windlass.Denied, match="no token: ValueError: the vault is sealed") as raised:
            locker.lock("raises", timeout=PATIENCE).acquire()
        assert isinstance(raised.value.__cause__, ValueError)


def test_a_function_that_gives_no_text(url):
    with windlass.connect(url, token=lambda: 5) as locker, pytest.raises(windlass.Denied, match="no token: TypeError"):
        locker.lock("number", timeout=PATIENCE).acquire()


def test_asyncio_takes_text_and_functions(url):
    async def main():
        for given in (token(60), lambda: token(60)):
            async with await aio.connect(url, token=given) as locker, locker.lock("aio") as held:
                assert held.is_held()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_async_function_runs_on_the_loop(url):
    loops = []

    async def source():
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return token(2)

    async def main():
        begun = time.monotonic()
        async with await aio.connect(url, ttl=3, token=source) as locker, locker.lock("async") as held:
            for _ in range(60):
                held.check()
                await asyncio.sleep(0.1)
        assert set(loops) == {asyncio.get_running_loop()}
        assert 2 <= len(loops) <= 2 + (time.monotonic() - begun)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_what_an_async_function_raises_is_the_cause(url):
    async def source():
        raise ValueError("the vault is sealed")

    async def main():
        async with await aio.connect(url, token=source) as locker:
            with pytest.raises(windlass.Denied, match="the vault is sealed") as raised:
                await locker.lock("raises", timeout=PATIENCE).acquire()
            assert isinstance(raised.value.__cause__, ValueError)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
