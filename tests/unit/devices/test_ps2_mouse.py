"""The PS/2 mouse at its cable: movement and buttons go in, packets come out, and every command."""

from __future__ import annotations

import random

import pytest

from pyvmm.clock import FakeClock
from pyvmm.devices.ps2_mouse import ACCUMULATED_LIMIT, Ps2Mouse
from pyvmm.input.codes import BTN_EXTRA, BTN_LEFT, BTN_MIDDLE, BTN_RIGHT, BTN_SIDE, BTN_TASK
from pyvmm.trace import Channel

MS = 1_000_000
ACK = 0xFA
NAK = 0xFE
INTELLIMOUSE = (0xF3, 200, 0xF3, 100, 0xF3, 80)
EXPLORER = (0xF3, 200, 0xF3, 200, 0xF3, 80)


class Bench:
    """A mouse with a host that reads when told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.trace: list[str] = []
        self.mouse = Ps2Mouse(self.clock, Channel("i8042", lambda _ns, _name, message: self.trace.append(message)))

    def read(self) -> int:
        value = self.mouse.take()
        if value >= 0:
            self.mouse.taken()
        return value

    def drain(self) -> bytes:
        received = bytearray()
        while (value := self.read()) >= 0:
            received.append(value)
        return bytes(received)

    def send(self, *values: int) -> bytes:
        for value in values:
            self.mouse.write(value)
        return self.drain()

    def knock(self, knock: tuple[int, ...]) -> None:
        assert self.send(*knock) == bytes((ACK,)) * 6

    def packets(self) -> list[tuple[int, int, int, int, int]]:
        """All packets until the mouse has no more to say: (buttons, right, up, fourth byte, overflow bits)."""
        size = 3 if self.mouse.identity == 0 else 4
        received = bytearray(self.drain())
        self.clock.advance(100 * MS)
        while data := self.drain():
            received += data
            self.clock.advance(100 * MS)
        assert len(received) % size == 0
        packets = []
        for start in range(0, len(received), size):
            head, x, y = received[start : start + 3]
            assert head & 0x08
            x -= 256 if head & 0x10 else 0
            y -= 256 if head & 0x20 else 0
            packets.append((head & 7, x, y, received[start + 3] if size == 4 else 0, head & 0xC0))
        return packets


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def reporting(bench: Bench) -> Bench:
    assert bench.send(0xF4) == bytes((ACK,))
    return bench


# Commands


def test_identify(bench: Bench) -> None:
    assert bench.send(0xF2) == bytes((ACK, 0))


def test_reset(bench: Bench) -> None:
    bench.knock(EXPLORER)
    bench.send(0xF4, 0xE7, 0xF0)
    assert bench.send(0xFF) == bytes((ACK, 0xAA, 0))
    assert bench.send(0xE9) == bytes((ACK, 0, 2, 100))
    assert bench.send(0xF2) == bytes((ACK, 0))


def test_power_on_reset_sends_nothing(bench: Bench) -> None:
    bench.knock(EXPLORER)
    bench.mouse.write(0xF4)
    bench.mouse.motion(1, 1)
    bench.mouse.reset()
    assert bench.drain() == b""
    assert bench.send(0xF2) == bytes((ACK, 0))


def test_defaults_keep_the_identity(bench: Bench) -> None:
    bench.knock(INTELLIMOUSE)
    bench.send(0xE8, 3, 0xE7, 0xF4, 0xF3, 40)
    assert bench.send(0xF6) == bytes((ACK,))
    assert bench.send(0xE9) == bytes((ACK, 0, 2, 100))
    assert bench.send(0xF2) == bytes((ACK, 3))


def test_status(bench: Bench) -> None:
    assert bench.send(0xE9) == bytes((ACK, 0x00, 2, 100))
    bench.send(0xE8, 3, 0xF3, 200, 0xE7, 0xF4)
    assert bench.send(0xE9) == bytes((ACK, 0x30, 3, 200))
    bench.send(0xE6, 0xF0, 0xF5)
    assert bench.send(0xE9) == bytes((ACK, 0x40, 3, 200))
    for button, bit in ((BTN_LEFT, 4), (BTN_MIDDLE, 2), (BTN_RIGHT, 1)):
        bench.mouse.button(button, True)
        assert bench.send(0xE9)[1] == 0x40 | bit
        bench.mouse.button(button, False)


def test_resolution(bench: Bench) -> None:
    for value in range(4):
        assert bench.send(0xE8, value) == bytes((ACK, ACK))
        assert bench.mouse.resolution == value
    assert bench.send(0xE8, 4) == bytes((ACK, NAK))
    assert bench.mouse.resolution == 3


def test_sample_rate(bench: Bench) -> None:
    for value in (10, 20, 40, 60, 80, 100, 200):
        assert bench.send(0xF3, value) == bytes((ACK, ACK))
        assert bench.mouse.rate == value
    assert bench.send(0xF3, 0) == bytes((ACK, NAK))
    assert bench.mouse.rate == 200


def test_a_command_in_place_of_an_option(bench: Bench) -> None:
    assert bench.send(0xF3, 0xF2) == bytes((ACK, ACK, 0))
    assert bench.mouse.rate == 100


@pytest.mark.parametrize("value", [0x00, 0xE1, 0xE2, 0xED, 0xEF, 0xF1, 0xF7, 0xFD])
def test_what_is_no_command(bench: Bench, value: int) -> None:
    assert bench.send(value) == bytes((NAK,))


def test_resend(bench: Bench) -> None:
    bench.send(0xE9)
    assert bench.send(0xFE) == bytes((100,))
    assert bench.send(0x00) == bytes((NAK,))
    assert bench.send(0xFE) == bytes((100,))


def test_wrap_mode(bench: Bench) -> None:
    assert bench.send(0xF4, 0xEE) == bytes((ACK, ACK))
    bench.mouse.motion(5, 5)
    assert bench.send(*range(0xE0, 0xEC), 0xF2, 0x12) == bytes((*range(0xE0, 0xEC), 0xF2, 0x12))
    assert bench.send(0xEC) == bytes((ACK,))
    assert bench.send(0xF2) == bytes((ACK, 0))
    assert bench.send(0xEE) == bytes((ACK,))
    assert bench.send(0xFF) == bytes((ACK, 0xAA, 0))


def test_unread_answers_are_bounded(bench: Bench) -> None:
    for _ in range(1000):
        bench.mouse.write(0xE9)
    assert len(bench.drain()) <= 16


# Stream mode


def test_nothing_is_reported_before_it_is_asked_for(bench: Bench) -> None:
    bench.mouse.motion(5, 5)
    bench.mouse.button(BTN_LEFT, True)
    assert bench.drain() == b""
    bench.send(0xF4)
    assert bench.drain() == b""  # the counters start at zero
    bench.mouse.motion(1, 0)
    assert bench.packets() == [(1, 1, 0, 0, 0)]


def test_a_packet(reporting: Bench) -> None:
    reporting.mouse.motion(3, 5)
    assert reporting.drain() == bytes((0x28, 3, 0xFB))  # Y counts up in the packet
    assert "mouse: packet 28 03 fb" in reporting.trace


@pytest.mark.parametrize("dx", [-255, -1, 0, 1, 255])
@pytest.mark.parametrize("dy", [-255, -1, 0, 1, 255])
def test_signs(reporting: Bench, dx: int, dy: int) -> None:
    reporting.mouse.motion(dx, dy)
    assert reporting.packets() == ([(0, dx, -dy, 0, 0)] if dx or dy else [])


def test_buttons(reporting: Bench) -> None:
    for button in (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE):
        reporting.mouse.button(button, True)
    assert [packet[0] for packet in reporting.packets()] == [1, 3, 7]
    reporting.mouse.button(BTN_LEFT, True)  # it is down already
    reporting.mouse.button(BTN_TASK, True)  # there is none
    reporting.mouse.button(BTN_SIDE, True)  # a standard mouse has none
    assert reporting.packets() == []
    reporting.mouse.release_all()
    assert [packet[0] for packet in reporting.packets()] == [6, 4, 0]


def test_a_click_between_two_samples_is_not_lost(reporting: Bench) -> None:
    reporting.mouse.motion(1, 0)
    reporting.drain()
    for _ in range(2):
        reporting.mouse.button(BTN_LEFT, True)
        reporting.mouse.button(BTN_LEFT, False)
    assert reporting.drain() == b""
    reporting.clock.advance(10 * MS)
    assert [packet[0] for packet in reporting.packets()] == [1, 0, 1, 0]


def test_movement_adds_up_while_the_host_does_not_read(reporting: Bench) -> None:
    for _ in range(100):
        reporting.mouse.motion(1, -2)
        reporting.clock.advance(20 * MS)
    packets = reporting.packets()
    assert packets == [(0, 1, 2, 0, 0), (0, 99, 198, 0, 0)]


def test_the_order_of_movement_and_clicks(reporting: Bench) -> None:
    mouse = reporting.mouse
    mouse.motion(1, 0)  # goes out at once
    mouse.motion(2, 0)
    mouse.button(BTN_LEFT, True)
    mouse.motion(4, 0)
    mouse.motion(8, 0)
    mouse.button(BTN_LEFT, False)
    mouse.motion(16, 0)
    assert reporting.packets() == [(0, 1, 0, 0, 0), (1, 2, 0, 0, 0), (0, 12, 0, 0, 0), (0, 16, 0, 0, 0)]


def test_a_long_way_takes_packets_and_then_the_button_changes(reporting: Bench) -> None:
    reporting.mouse.motion(1, 0)
    reporting.mouse.motion(600, -300)
    reporting.mouse.button(BTN_LEFT, True)
    packets = reporting.packets()[1:]
    assert packets == [(0, 255, 255, 0, 0), (0, 255, 45, 0, 0), (1, 90, 0, 0, 0)]


def test_overflow_bits_say_that_movement_was_lost(reporting: Bench) -> None:
    for _ in range(100):
        reporting.mouse.motion(100, 0)
    packets = reporting.packets()
    assert packets[1][4] == 0x40
    assert all(packet[4] == 0 for packet in packets[2:])
    assert sum(packet[1] for packet in packets) == 100 + ACCUMULATED_LIMIT
    for _ in range(100):
        reporting.mouse.motion(0, -(10**30))
    assert reporting.packets()[1][4] == 0x80


def test_many_clicks_keep_the_last_state(reporting: Bench) -> None:
    for _ in range(1000):
        reporting.mouse.button(BTN_LEFT, True)
        reporting.mouse.button(BTN_LEFT, False)
    reporting.mouse.button(BTN_RIGHT, True)
    packets = reporting.packets()
    assert len(packets) <= 17
    assert packets[-1][0] == 2


@pytest.mark.parametrize("rate", [10, 100, 200])
def test_the_sample_rate_is_kept(reporting: Bench, rate: int) -> None:
    reporting.send(0xF3, rate)
    size = 0
    moved = 0
    for _ in range(1000):
        reporting.mouse.motion(1, 0)
        data = reporting.drain()
        size += len(data)
        moved += sum(data[1::3])
        reporting.clock.advance(MS)
    assert size // 3 == pytest.approx(rate, abs=1)
    assert moved == pytest.approx(1000, abs=1000 / rate + 1)


def test_scaling(reporting: Bench) -> None:
    assert reporting.send(0xE7) == bytes((ACK,))
    for count, scaled in enumerate((0, 1, 1, 3, 6, 9, 12, 14)):
        if count:
            reporting.mouse.motion(count, count)
            assert reporting.packets() == [(0, scaled, -scaled, 0, 0)]
    reporting.mouse.motion(200, 0)
    assert [packet[1] for packet in reporting.packets()] == [254, 146]
    reporting.mouse.motion(4, 0)
    reporting.mouse.motion(4, 0)
    reporting.drain()
    assert reporting.send(0xEB)[2] == 4  # read data is never scaled
    assert reporting.send(0xE6) == bytes((ACK,))


def test_disable_ends_the_stream(reporting: Bench) -> None:
    reporting.mouse.motion(1, 0)
    assert reporting.read() == 0x08
    assert reporting.send(0xF5) == bytes((ACK,))  # what was left of the packet is cut off
    reporting.mouse.motion(1, 0)
    reporting.clock.advance(1000 * MS)
    assert reporting.drain() == b""


def test_a_command_that_cuts_a_packet_off_does_not_lose_the_button(reporting: Bench) -> None:
    reporting.mouse.button(BTN_LEFT, True)
    assert reporting.read() == 0x09
    assert reporting.send(0xF2) == bytes((ACK, 0))
    reporting.clock.advance(10 * MS)
    assert reporting.packets() == [(1, 0, 0, 0, 0)]


def test_an_option_clears_the_counters_but_not_the_buttons(reporting: Bench) -> None:
    reporting.mouse.motion(1, 0)
    reporting.drain()
    reporting.mouse.motion(50, 0)
    reporting.mouse.button(BTN_LEFT, True)
    assert reporting.send(0xF3) == bytes((ACK,))
    assert reporting.send(60) == bytes((ACK, 0x09, 0, 0))
    reporting.mouse.motion(1, 0)
    assert reporting.packets() == [(1, 1, 0, 0, 0)]


# Remote mode


def test_remote_mode(bench: Bench) -> None:
    assert bench.send(0xF0, 0xF4) == bytes((ACK, ACK))
    bench.mouse.motion(3, 4)
    bench.mouse.motion(3, 4)
    bench.mouse.button(BTN_RIGHT, True)
    bench.clock.advance(1000 * MS)
    assert bench.drain() == b""
    assert bench.send(0xEB) == bytes((ACK, 0x2A, 6, 0xF8))
    assert bench.send(0xEB) == bytes((ACK, 0x0A, 0, 0))
    assert bench.send(0xEA) == bytes((ACK,))
    bench.mouse.motion(1, 0)
    assert bench.packets() == [(2, 1, 0, 0, 0)]


def test_read_data_in_stream_mode(bench: Bench) -> None:
    bench.mouse.motion(7, 0)
    assert bench.send(0xEB) == bytes((ACK, 0x08, 7, 0))


# Wheel and five buttons


def test_intellimouse(bench: Bench) -> None:
    bench.knock(INTELLIMOUSE)
    assert bench.send(0xF2) == bytes((ACK, 3))
    bench.send(0xF4)
    bench.mouse.wheel(1)
    assert bench.packets() == [(0, 0, 0, 0xFF, 0)]
    bench.mouse.wheel(-2)
    assert bench.packets() == [(0, 0, 0, 0x02, 0)]
    bench.mouse.wheel(20)
    assert [packet[3] for packet in bench.packets()] == [0xF9, 0xF9, 0xFA]
    bench.mouse.button(BTN_EXTRA, True)
    assert bench.packets() == []


def test_explorer(bench: Bench) -> None:
    bench.knock(EXPLORER)
    assert bench.send(0xF2) == bytes((ACK, 4))
    bench.send(0xF4)
    bench.mouse.wheel(1)
    assert bench.packets() == [(0, 0, 0, 0x0F, 0)]
    bench.mouse.button(BTN_SIDE, True)
    bench.mouse.button(BTN_EXTRA, True)
    bench.mouse.button(BTN_LEFT, True)
    assert bench.packets() == [(0, 0, 0, 0x10, 0), (0, 0, 0, 0x30, 0), (1, 0, 0, 0x30, 0)]
    bench.mouse.release_all()
    assert bench.packets()[-1] == (0, 0, 0, 0, 0)


def test_linux_knocks_for_both(bench: Bench) -> None:
    bench.knock(INTELLIMOUSE)
    bench.knock(EXPLORER)
    assert bench.send(0xF3, 200, 0xF3, 80, 0xF3, 40, 0xF2) == bytes((ACK,)) * 7 + b"\x04"


@pytest.mark.parametrize("rates", [(200, 100, 60), (100, 80, 200), (200, 80), (200, 200, 100)])
def test_other_rates_are_no_knock(bench: Bench, rates: tuple[int, ...]) -> None:
    for rate in rates:
        bench.send(0xF3, rate)
    assert bench.send(0xF2) == bytes((ACK, 0))


def test_a_standard_mouse_has_no_wheel(reporting: Bench) -> None:
    reporting.mouse.wheel(1)
    assert reporting.packets() == []


def test_random_bytes_and_movement() -> None:
    """Whatever the host sends and whenever it reads, the mouse holds little and goes on working."""
    chance = random.Random(12)
    bench = Bench()
    mouse = bench.mouse
    buttons = (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA, BTN_TASK)
    for _ in range(10_000):
        action = chance.randrange(12)
        if action < 4:
            mouse.write(chance.randrange(256) if action else chance.choice((0xF3, 0xF4, 0xEB, 200, 100, 80)))
        elif action < 6:
            mouse.motion(chance.randrange(-500, 501), chance.randrange(-500, 501))
        elif action == 6:
            mouse.button(chance.choice(buttons), chance.random() < 0.5)
        elif action == 7:
            mouse.wheel(chance.randrange(-9, 10))
        elif action < 11:
            assert -1 <= bench.read() <= 0xFF
        else:
            bench.clock.advance(chance.randrange(100 * MS))
        assert len(mouse._reports) <= 4
        assert len(mouse._answers) <= 16
        assert len(mouse._samples) <= 17
    bench.drain()
    mouse.release_all()
    bench.send(0xFF)
    bench.send(0xF4)
    mouse.motion(1, 1)
    assert bench.packets() == [(0, 1, -1, 0, 0)]
