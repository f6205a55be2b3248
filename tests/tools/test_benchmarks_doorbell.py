"""benchmarks/doorbell.py: what it makes of its measurements."""

from __future__ import annotations

import time

from benchmarks.doorbell import DoorbellRegister, each, report


def test_each_is_a_mean_in_microseconds() -> None:
    called: list[None] = []

    def call() -> None:
        called.append(None)
        time.sleep(0.001)

    assert each(call, 20) >= 1000
    assert len(called) == 20


def test_doorbell_rings_at_writes_only() -> None:
    rung: list[None] = []
    device = DoorbellRegister(lambda: rung.append(None))
    assert device.read(0, 4) == 0 and rung == []
    device.write(0, 4, 7)
    assert rung == [None]


def test_report_has_microseconds_of_both_clocks() -> None:
    text = report({"a write": [2000.0, 4000.0, 3000.0]}, {"a call": [1.5, 1.0, 2.0]}, 1_000_000_000)
    assert "| a write | 3.00 (2.00–4.00) |" in text
    assert "| a call | 1.50 (1.00–2.00) |" in text
