"""The examples in the documentation run."""

from __future__ import annotations

import doctest
import importlib

import pytest


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
