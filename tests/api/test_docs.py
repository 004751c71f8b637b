"""The examples of the docs are run: a page's shell from top to bottom, and what it prints looks as the page says."""

import json
import os
import re
import socket
import subprocess

import pytest
from conftest import ROOT, WINDLASS

# Pages, or sections of pages, whose examples need nothing that a reader has to have of their own.
PAGES = ["docs/protocol.md", "docs/security.md", "README.md#Many machines"]

# What the reader has, and how a server runs beside the rest.
BEFORE = r"""
set -euo pipefail
trap 'kill $(jobs -p)' EXIT
openssl req -x509 -newkey ed25519 -nodes -subj /CN=localhost -keyout server.key -out server.pem 2>/dev/null
openssl rand -hex 32 >jwt.key
printf '#!/bin/sh\n' >deploy.sh && chmod +x deploy.sh
mkdir log
windlass() {
    if [[ $1 != serve ]]; then
        command windlass "$@"
        return
    fi
    command windlass "$@" 2>serve.log &
    until grep -q 'serving locks' serve.log; do
        kill -0 $! || { cat serve.log >&2; exit 1; }
        sleep 0.05
    done
}
"""


@pytest.mark.parametrize("page", PAGES)
def test_examples(page, tmp_path):
    examples = list(examples_of(page))
    assert examples
    port = free_port()
    script = BEFORE + "".join(f"exec >out.{n}\n{at(port, shell)}\n" for n, (shell, _) in enumerate(examples))
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    log = tmp_path / "serve.log"
    assert ran.returncode == 0, (ran.stderr, log.exists() and log.read_text())
    for number, (shell, told) in enumerate(examples):
        if told is not None:
            printed = json.loads((tmp_path / f"out.{number}").read_text())
            assert differences(read(told), printed) == [], shell


def examples_of(page):
    """Each block of shell with the JSON that follows it at once, or `None`."""
    path, _, section = page.partition("#")
    text = (ROOT / path).read_text()
    if section:
        text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]
    for block in re.finditer(r"^```sh\n(.*?)^```\n(?:```json\n(.*?)^```$)?", text, re.M | re.S):
        yield block.groups()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def at(port, shell):
    """With a port that is free, and folders that may be written to."""
    listens = re.sub(r"windlass serve(?!.*--listen)", "windlass serve --listen 127.0.0.1:7420", shell)
    return listens.replace("7420", port).replace("/var/lib/windlass", "data").replace("/var/log/windlass", "log")


def environment(folder):
    path = f"{WINDLASS.parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder)}


def read(told):
    """JSON in which `…` stands for what is left out: the rest of a text, of a list, or a value."""
    return json.loads(re.sub(r"(?<=[\[,:])…(?=[\],}])", '"…"', told))


def differences(told, printed, where="$"):
    """Where one differs from the other in shape: keys, types, and texts without an ellipsis."""
    if isinstance(told, str) and "…" in told:
        begin, _, end = told.partition("…")
        like = told == "…" or (isinstance(printed, str) and printed.startswith(begin) and printed.endswith(end))
        return [] if like else [f"{where}: {printed!r} is not like {told!r}"]
    if type(told) is not type(printed) or (isinstance(told, str) and told != printed):
        return [f"{where}: {printed!r} is not like {told!r}"]
    if isinstance(told, dict):
        if told.keys() != printed.keys():
            return [f"{where}: {sorted(printed)} are not {sorted(told)}"]
        return [more for key in told for more in differences(told[key], printed[key], f"{where}.{key}")]
    if isinstance(told, list):
        if told and told[-1] == "…":
            told, printed = told[:-1], printed[: len(told) - 1]
        if len(told) != len(printed):
            return [f"{where}: {len(printed)} are not {len(told)}"]
        return [more for n, pair in enumerate(zip(told, printed)) for more in differences(*pair, f"{where}[{n}]")]
    return []


def test_a_difference_is_seen():
    told = read('{"a":1,"b":"x…","c":[…],"d":["y",…],"e":{"f":true}}')
    same = {"a": 2, "b": "xyz", "c": [], "d": ["y", 1], "e": {"f": False}}
    assert differences(told, same) == []
    for key, value in {"a": "1", "b": "yx", "d": [], "e": {"g": True}}.items():
        assert differences(told, {**same, key: value}), key
    assert differences(told, {**same, "more": 1})
