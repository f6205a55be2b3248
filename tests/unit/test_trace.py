"""Where trace lines go when nobody takes them any more."""

from __future__ import annotations

import io
import os

import pytest

from pyvmm.errors import UserError
from pyvmm.trace import Step, Trace, text_sink


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


def test_a_listener_hears_what_is_off_and_the_user_does_not() -> None:
    shown: list[str] = []
    trace = Trace({"irq"}, lambda ns, channel, message: shown.append(message))
    irq, i8042 = trace.channel("irq"), trace.channel("i8042")
    heard: list[tuple[str, str, Step | None]] = []

    def listen(ns: int, channel: str, message: str, step: Step | None) -> None:
        heard.append((channel, message, step))

    trace.listen(listen)
    later = trace.channel("later")
    assert i8042.enabled and later.enabled and trace.enabled == ("irq",)
    irq("up", ("irq", 1, 1))
    i8042("read")
    later("too")
    trace.off("irq")
    irq("down")
    assert shown == ["up"]
    assert heard == [
        ("irq", "up", ("irq", 1, 1)),
        ("i8042", "read", None),
        ("later", "too", None),
        ("irq", "down", None),
    ]
    with pytest.raises(UserError, match="already"):
        trace.listen(listen)
    trace.listen(None)
    assert not i8042.enabled and not irq.enabled
    trace.on("irq")
    irq("again")
    assert shown == ["up", "again"] and len(heard) == 4
