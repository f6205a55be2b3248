"""Ports 0x92 and 0x61 bit by bit."""

from __future__ import annotations

from pyvmm.clock import FakeClock
from pyvmm.devices.system_control import PORT61_IOCHK, PORT61_SERR, REFRESH_PERIOD, SystemControlA, SystemControlB


def test_port_92_gates_a20_and_resets_on_the_rising_bit() -> None:
    events: list[object] = []
    port = SystemControlA(lambda: events.append("reset"), events.append)
    assert port.read(0, 1) == 0x02
    port.write(0, 1, 0x00)
    port.write(0, 1, 0x02)
    port.write(0, 1, 0x02)
    assert events == [False, True]
    port.write(0, 1, 0x03)
    assert events == [False, True, "reset"]
    assert port.read(0, 1) == 0x02, "a machine that starts again can be reset again"
    port.write(1, 1, 0xFF)
    assert events == [False, True, "reset"] and port.read(1, 1) == 0xFF


def test_port_61_drives_the_gate_and_shows_the_output() -> None:
    gates: list[bool] = []
    speaker: list[bool] = []
    out = [False]
    port = SystemControlB(gates.append, lambda: out[0], FakeClock(), speaker.append)
    assert port.read(0, 1) == 0
    port.write(0, 1, 0x01)
    port.write(0, 1, 0x03)
    out[0] = True
    assert port.read(0, 1) == 0x23
    port.write(0, 1, 0xF0)
    assert port.read(0, 1) == 0x20, "the upper half is read-only"
    assert gates == [True, False]
    assert speaker == [True, False]


def test_the_refresh_bit_toggles_in_real_time() -> None:
    clock = FakeClock()
    port = SystemControlB(lambda level: None, lambda: False, clock)
    seen = []
    for _ in range(8):
        seen.append(port.read(0, 1) & 0x10)
        clock.advance(REFRESH_PERIOD)
    assert seen == [0, 0x10] * 4


def test_nmi_reasons_stay_until_their_source_is_disabled() -> None:
    port = SystemControlB(lambda level: None, lambda: False, FakeClock())
    port.assert_nmi(PORT61_SERR | PORT61_IOCHK)
    assert port.read(0, 1) == 0xC0
    port.write(0, 1, 0x04)
    assert port.read(0, 1) == 0x44
    port.write(0, 1, 0x08)
    assert port.read(0, 1) == 0x08
