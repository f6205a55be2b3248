"""Where trace lines go when nobody takes them any more."""

from __future__ import annotations

import io
import os

from pyvmm.trace import text_sink


def test_a_stream_that_is_full_does_not_raise() -> None:
    with open("/dev/full", "w") as full:
        sink = text_sink(full)
        for _ in range(3):
            sink(0, "irq", "x" * 10_000)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what waits in its buffer goes there


def test_the_lines() -> None:
    stream = io.StringIO()
    sink = text_sink(stream)
    sink(1_000_000_000, "irq", "first")
    sink(1_500_000_000, "exits", "second")
    assert stream.getvalue() == "    0.000000 irq      first\n    0.500000 exits    second\n"
