"""The examples in the documentation run."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import PATIENCE


@pytest.mark.parametrize("name", ["windlass", "windlass._lock", "windlass._locker", "windlass.aio"])
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert results.attempted > 0
    assert results.failed == 0


def test_everything_public_is_documented():
    import windlass
    from windlass import aio

    for module in (windlass, aio):
        for name in module.__all__:
            thing = getattr(module, name)
            assert thing.__doc__, name
            for member in vars(thing) if isinstance(thing, type) else ():
                if not member.startswith("_"):
                    assert getattr(thing, member).__doc__, (name, member)


# Pages whose programs need an etcd and nothing else.
PAGES = ["docs/elock.md"]
RUNS = {"python": [sys.executable, "-c"], "sh": ["bash", "-euo", "pipefail", "-c"]}


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_a_page(page, etcd, tmp_path):
    """Each prints what the page says."""
    text = (Path(__file__).parents[2] / page).read_text()
    blocks = re.findall(r"^( *)```(python|sh)\n(.*?)^\1```\n\1```text\n(.*?)^\1```$", text, re.M | re.S)
    assert {language for _, language, _, _ in blocks} == set(RUNS)
    # The command is the one that came with the package.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "ETCDCTL_ENDPOINTS": etcd.host}
    for _, language, program, prints in blocks:
        program = textwrap.dedent(program).replace("127.0.0.1:2379", etcd.host)
        command = [*RUNS[language], program]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert (ran.returncode, ran.stdout) == (0, textwrap.dedent(prints)), (program, ran.stderr)
    assert etcd.keys("elock") == []
    assert len(blocks) == len(re.findall(r"^ *```(?:python|sh)$", text, re.M))
