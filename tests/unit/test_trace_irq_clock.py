"""Trace channels, interrupt lines, and the clock that the unit tests of devices use."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.errors import UserError
from pyvmm.irq import FakeIrq, LevelIrq, SharedLine
from pyvmm.trace import OFF, Trace, text_sink

# Trace


def test_only_the_channels_asked_for_are_on() -> None:
    got: list[tuple[str, str]] = []
    trace = Trace({"irq"}, lambda ns, channel, message: got.append((channel, message)))
    irq, serial = trace.channel("irq"), trace.channel("serial")
    assert (irq.enabled, serial.enabled) == (True, False)
    irq("one")
    serial("two")
    assert got == [("irq", "one")]
    assert trace.channel("irq") is irq


def test_all() -> None:
    trace = Trace({"all"}, lambda ns, channel, message: None)
    told: list[tuple[str, ...]] = []
    trace.watch(lambda: told.append(trace.enabled))
    assert trace.channel("irq").enabled and trace.channel("a part's own").enabled
    assert told == [(), ("irq",), ("a part's own", "irq")], "who watches hears of a channel that is on as it is made"


def test_without_a_sink_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Trace({"all"}).channel("irq")("a line")
    assert capsys.readouterr().err == "    0.000000 irq      a line\n"
    assert not OFF.enabled
    OFF("nothing happens")


def test_channels_are_switched() -> None:
    got: list[str] = []
    trace = Trace({"irq", "nope"}, lambda ns, channel, message: got.append(f"{channel} {message}"))
    irq, pci = trace.channel("irq"), trace.channel("pci")
    told: list[tuple[str, ...]] = []
    trace.watch(lambda: told.append(trace.enabled))
    assert (trace.names, trace.enabled, trace.unknown) == (("irq", "pci"), ("irq",), ("nope",))
    trace.on("pci")
    trace.off("irq")
    irq("one")
    pci("two")
    trace.off("all")
    assert (got, trace.enabled) == (["pci two"], ())
    assert told == [("irq",), ("irq", "pci"), ("pci",), ()]
    with pytest.raises(UserError, match="trace: no channel typo; there are: all, irq, pci"):
        trace.on("irq", "typo")
    assert trace.enabled == ()


def test_text_sink_counts_from_the_first_line() -> None:
    out = io.StringIO()
    sink = text_sink(out)
    sink(5_000_000_000, "irq", "first")
    sink(6_500_001_000, "exits", "second")
    assert out.getvalue() == "    0.000000 irq      first\n    1.500001 exits    second\n"
    trace = Trace({"irq"}, sink)
    trace.channel("irq")("third")
    assert re.search(r"\d irq +third\n$", out.getvalue())


# Lines


def test_a_level_line_is_driven_when_it_changes() -> None:
    levels: list[bool] = []
    line = LevelIrq(levels.append)
    for level in (False, True, True, False, False, True):
        line.set_level(level)
    assert levels == [True, False, True]
    line.pulse()
    assert levels == [True, False, True, False], "it was up: a pulse lets it down"
    line.pulse()
    assert levels[-2:] == [True, False]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_a_shared_line_is_up_while_any_source_is(changes: list[tuple[int, bool]]) -> None:
    target = FakeIrq()
    line = SharedLine(target)
    sources = [line.source() for _ in range(4)]
    levels = [False] * 4
    for index, level in changes:
        sources[index].set_level(level)
        levels[index] = level
        assert target.level == any(levels)


def test_fake_irq_counts_edges() -> None:
    irq = FakeIrq()
    irq.set_level(True)
    irq.set_level(True)
    irq.pulse()
    irq.pulse()
    assert (irq.edges, irq.level) == (2, False)


# The fake clock


def test_timers_fire_in_the_order_of_their_deadlines() -> None:
    clock = FakeClock(1000)
    fired: list[tuple[str, int]] = []
    late = clock.timer(lambda: fired.append(("late", clock.now())))
    early = clock.timer(lambda: fired.append(("early", clock.now())))
    late.arm(1030)
    early.arm(1010)
    clock.advance(9)
    assert fired == []
    clock.advance(21)
    assert fired == [("early", 1010), ("late", 1030)]
    clock.advance(100)
    assert len(fired) == 2, "once"


def test_a_timer_re_armed_and_cancelled() -> None:
    clock = FakeClock()
    fired: list[int] = []

    def again() -> None:
        fired.append(clock.now())
        if len(fired) < 3:
            timer.arm(clock.now() + 10)

    timer = clock.timer(again)
    timer.arm(10)
    clock.advance(100)
    assert fired == [10, 20, 30]
    timer.arm(150)
    timer.cancel()
    clock.advance(100)
    assert len(fired) == 3
    timer.arm(0)
    clock.advance(0)
    assert fired[-1] == 200, "a deadline that has passed is now"
