"""Fixtures of the tests that run small guests on /dev/kvm, whatever is behind it."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest

LONGEST = 300
"""Seconds. A test that takes longer hangs: the stacks of all threads are printed and the run ends."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
