"""The PS/2 keyboard at its cable: keys go in, bytes come out, and every command."""

from __future__ import annotations

import random

import pytest

from pyvmm.clock import FakeClock
from pyvmm.devices.ps2_keyboard import BUFFER_SIZE, PAUSE, Ps2Keyboard
from pyvmm.devices.scancodes import KEYS
from pyvmm.input import codes as ic
from pyvmm.trace import Channel

MS = 1_000_000
ACK = 0xFA
NAK = 0xFE


class Bench:
    """A keyboard with a host that reads when told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.leds: list[int] = []
        self.trace: list[str] = []
        channel = Channel("i8042", lambda _ns, _name, message: self.trace.append(message))
        self.keyboard = Ps2Keyboard(self.clock, self.leds.append, channel)

    def read(self) -> int:
        value = self.keyboard.take()
        if value >= 0:
            self.keyboard.taken()
        return value

    def drain(self) -> bytes:
        received = bytearray()
        while (value := self.read()) >= 0:
            received.append(value)
        return bytes(received)

    def drain_slowly(self) -> bytes:
        """All that comes, with the pauses between."""
        received = bytearray()
        while codes := self.drain():
            received += codes
            self.clock.advance(PAUSE)
        return bytes(received)

    def send(self, *values: int) -> bytes:
        for value in values:
            self.keyboard.write(value)
        return self.drain()

    def tap(self, *codes: int) -> bytes:
        for code in codes:
            self.keyboard.key(code, 1)
        for code in reversed(codes):
            self.keyboard.key(code, 0)
        return self.drain()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_key(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 1)
    assert bench.drain() == b"\x1c"
    assert list(bench.keyboard.down) == [ic.KEY_A]
    bench.keyboard.key(ic.KEY_A, 0)
    assert bench.drain() == b"\xf0\x1c"
    assert not bench.keyboard.down


def test_trace_shows_the_translation_of_a_key(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 1)
    assert bench.trace == ["keyboard: KEY_A down -> 1c (scan code set 2)"]


def test_the_hosts_repeat_and_doubles_are_ignored(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 2)
    bench.keyboard.key(ic.KEY_A, 0)
    assert bench.drain() == b""
    bench.keyboard.key(ic.KEY_A, 1)
    bench.keyboard.key(ic.KEY_A, 1)
    bench.keyboard.key(ic.KEY_A, 2)
    assert bench.drain() == b"\x1c"


def test_a_key_without_a_code_is_ignored(bench: Bench) -> None:
    assert bench.tap(ic.KEY_F24, 9999) == b""
    assert bench.keyboard.ready
    assert bench.keyboard.down == ()


def test_print_screen_breaks_as_it_was_made(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_LEFTALT, 1)
    bench.keyboard.key(ic.KEY_SYSRQ, 1)
    bench.keyboard.key(ic.KEY_LEFTALT, 0)
    bench.keyboard.key(ic.KEY_SYSRQ, 0)
    assert bench.drain().hex(" ") == "11 84 f0 11 f0 84"
    assert bench.tap(ic.KEY_SYSRQ).hex(" ") == "e0 12 e0 7c e0 f0 7c e0 f0 12"
    assert bench.tap(ic.KEY_LEFTSHIFT, ic.KEY_SYSRQ).hex(" ") == "12 e0 7c e0 f0 7c f0 12"


def test_pause_neither_breaks_nor_repeats(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_PAUSE, 1)
    assert bench.drain().hex(" ") == "e1 14 77 e1 f0 14 f0 77"
    bench.clock.advance(3000 * MS)
    bench.keyboard.key(ic.KEY_PAUSE, 0)
    assert bench.drain() == b""
    assert bench.tap(ic.KEY_RIGHTCTRL, ic.KEY_PAUSE).hex(" ") == "e0 14 e0 7e e0 f0 7e e0 f0 14"


def test_release_all(bench: Bench) -> None:
    for code in (ic.KEY_LEFTCTRL, ic.KEY_LEFTALT, ic.KEY_DELETE):
        bench.keyboard.key(code, 1)
    bench.drain()
    bench.keyboard.release_all()
    assert bench.drain().hex(" ") == "e0 f0 71 f0 11 f0 14"
    assert bench.keyboard.down == ()
    bench.clock.advance(5000 * MS)
    assert bench.drain() == b""


# Commands


def test_leds(bench: Bench) -> None:
    for option, mask in (
        (0, 0),
        (1, 1 << ic.LED_SCROLLL),
        (2, 1 << ic.LED_NUML),
        (4, 1 << ic.LED_CAPSL),
        (7, 7),
    ):
        assert bench.send(0xED, option) == bytes((ACK, ACK))
        assert bench.keyboard.leds == mask
        assert bench.leds[-1] == mask


def test_a_command_in_place_of_an_option(bench: Bench) -> None:
    assert bench.send(0xED, 0xEE) == bytes((ACK, 0xEE))
    assert bench.leds == []
    assert bench.send(0x02) == bytes((NAK,))


def test_echo(bench: Bench) -> None:
    assert bench.send(0xEE) == b"\xee"


def test_identify(bench: Bench) -> None:
    assert bench.send(0xF2) == bytes((ACK, 0xAB, 0x83))


@pytest.mark.parametrize("value", [0x00, 0x55, 0xE8, 0xEA, 0xEF, 0xF1])
def test_what_is_no_command(bench: Bench, value: int) -> None:
    assert bench.send(value) == bytes((NAK,))


def test_scan_code_set(bench: Bench) -> None:
    assert bench.send(0xF0, 0) == bytes((ACK, ACK, 2))
    for number, codes in ((1, "1e 9e"), (3, "1c"), (2, "1c f0 1c")):
        assert bench.send(0xF0, number) == bytes((ACK, ACK))
        assert bench.keyboard.scan_code_set == number
        assert bench.send(0xF0, 0) == bytes((ACK, ACK, number))
        assert bench.tap(ic.KEY_A).hex(" ") == codes
    assert bench.send(0xF0, 4) == bytes((ACK, NAK))
    assert bench.keyboard.scan_code_set == 2


def test_disable_and_enable(bench: Bench) -> None:
    assert bench.send(0xF5) == bytes((ACK,))
    assert not bench.keyboard.ready
    assert bench.tap(ic.KEY_A) == b""
    bench.keyboard.key(ic.KEY_B, 1)
    assert bench.send(0xF4) == bytes((ACK,))
    bench.keyboard.key(ic.KEY_B, 0)
    assert bench.drain() == b""  # its make code was never sent
    assert bench.tap(ic.KEY_A) == b"\x1c\xf0\x1c"


def test_enable_keeps_what_waits(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 1)
    assert bench.send(0xF4) == bytes((ACK, 0x1C))


def test_defaults(bench: Bench) -> None:
    for command in (0xF5, 0xF6):
        bench.send(0xF4)
        bench.send(0xF0, 3, 0xF3, 0x7F, 0xED, 7)
        bench.keyboard.key(ic.KEY_A, 1)
        assert bench.send(command) == bytes((ACK,))  # the buffer is emptied
        bench.keyboard.key(ic.KEY_A, 0)
        assert bench.send(0xF0, 0) == bytes((ACK, ACK, 2))
        assert bench.keyboard.leds == 7
        assert bench.keyboard.ready == (command == 0xF6)
        assert bench.keyboard.repeat_period == 91_740_000


def test_defaults_do_not_start_scanning(bench: Bench) -> None:
    bench.send(0xF5)
    bench.send(0xF6)
    assert bench.tap(ic.KEY_A) == b""


def test_reset(bench: Bench) -> None:
    bench.send(0xF0, 1, 0xED, 7, 0xF5)
    assert bench.send(0xFF) == bytes((ACK, 0xAA))
    assert bench.leds[-1] == 0
    assert bench.keyboard.scan_code_set == 2
    assert bench.tap(ic.KEY_A) == b"\x1c\xf0\x1c"


def test_power_on_reset_sends_nothing(bench: Bench) -> None:
    bench.send(0xF0, 1)
    bench.keyboard.key(ic.KEY_A, 1)
    bench.keyboard.write(0xF2)
    bench.keyboard.reset()
    assert bench.drain() == b""
    assert bench.keyboard.ready
    assert bench.keyboard.down == ()
    assert bench.keyboard.scan_code_set == 2


def test_resend(bench: Bench) -> None:
    assert bench.send(0xFE) == b"\xaa"
    bench.keyboard.key(ic.KEY_A, 1)
    bench.drain()
    assert bench.send(0xFE) == b"\x1c"
    assert bench.send(0xFE) == b"\x1c"
    assert bench.send(0x01) == bytes((NAK,))
    assert bench.send(0xFE) == b"\x1c"  # a NAK is not repeated


def test_an_answer_goes_before_the_codes(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_UP, 1)
    assert bench.read() == 0xE0
    assert bench.send(0xF2) == bytes((ACK, 0xAB, 0x83, 0x75))


def test_unread_answers_are_bounded(bench: Bench) -> None:
    for _ in range(1000):
        bench.keyboard.write(0xF2)
    assert len(bench.drain()) <= 16


# Set 3


def test_set_3_key_types_of_power_on(bench: Bench) -> None:
    bench.send(0xF0, 3)
    assert bench.tap(ic.KEY_A).hex(" ") == "1c"
    assert bench.tap(ic.KEY_LEFTSHIFT).hex(" ") == "12 f0 12"
    assert bench.tap(ic.KEY_F1).hex(" ") == "07"
    bench.keyboard.key(ic.KEY_A, 1)
    bench.drain()
    bench.clock.advance(501 * MS)
    assert bench.drain() == b"\x1c"
    bench.keyboard.key(ic.KEY_F1, 1)
    bench.drain()
    bench.clock.advance(2000 * MS)
    assert bench.drain() == b""


@pytest.mark.parametrize(
    ("command", "repeats", "breaks"),
    [(0xF7, True, False), (0xF8, False, True), (0xF9, False, False), (0xFA, True, True)],
)
def test_set_3_all_keys(bench: Bench, command: int, repeats: bool, breaks: bool) -> None:
    bench.send(0xF0, 3)
    assert bench.send(command) == bytes((ACK,))
    for code, make in ((ic.KEY_A, 0x1C), (ic.KEY_F1, 0x07), (ic.KEY_CAPSLOCK, 0x14)):
        bench.keyboard.key(code, 1)
        assert bench.drain() == bytes((make,))
        bench.clock.advance(501 * MS)
        assert bench.drain() == (bytes((make,)) if repeats else b"")
        bench.keyboard.key(code, 0)
        assert bench.drain() == (bytes((0xF0, make)) if breaks else b"")


@pytest.mark.parametrize(
    ("command", "repeats", "breaks"), [(0xFB, True, False), (0xFC, False, True), (0xFD, False, False)]
)
def test_set_3_these_keys(bench: Bench, command: int, repeats: bool, breaks: bool) -> None:
    bench.send(0xF0, 3)
    assert bench.send(command, 0x1C, 0x84) == bytes((ACK, ACK, ACK))
    assert bench.send(0xEE) == b"\xee"  # a command ends the list
    for code, make in ((ic.KEY_A, 0x1C), (ic.KEY_KPMINUS, 0x84)):
        bench.keyboard.key(code, 1)
        assert bench.drain() == bytes((make,))
        bench.clock.advance(501 * MS)
        assert bench.drain() == (bytes((make,)) if repeats else b"")
        bench.keyboard.key(code, 0)
        assert bench.drain() == (bytes((0xF0, make)) if breaks else b"")
    assert bench.tap(ic.KEY_B) == b"\x32"  # another key is as it was


def test_set_3_a_key_type_for_no_key(bench: Bench) -> None:
    bench.send(0xF0, 3)
    assert bench.send(0xFB, 0x00, 0x1C) == bytes((ACK, NAK, ACK))


# Typematic


def test_typematic(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 1)
    assert bench.drain() == b"\x1c"
    bench.clock.advance(499 * MS)
    assert bench.drain() == b""
    bench.clock.advance(2 * MS)
    assert bench.drain() == b"\x1c"
    repeats = 0
    for _ in range(1000):
        bench.clock.advance(MS)
        repeats += len(bench.drain())
    assert repeats == 10  # 10.9 a second
    bench.keyboard.key(ic.KEY_A, 0)
    assert bench.drain() == b"\xf0\x1c"
    bench.clock.advance(2000 * MS)
    assert bench.drain() == b""


@pytest.mark.parametrize(
    ("option", "delay_ms", "per_second"),
    [(0x00, 250, 30.0), (0x20, 500, 30.0), (0x2B, 500, 10.9), (0x44, 750, 20.0), (0x7F, 1000, 2.0), (0x08, 250, 15.0)],
)
def test_typematic_rate_and_delay(bench: Bench, option: int, delay_ms: int, per_second: float) -> None:
    assert bench.send(0xF3, option) == bytes((ACK, ACK))
    bench.keyboard.key(ic.KEY_A, 1)
    bench.drain()
    bench.clock.advance((delay_ms - 1) * MS)
    assert bench.drain() == b""
    bench.clock.advance(MS)
    assert bench.drain() == b"\x1c"
    assert 1e9 / bench.keyboard.repeat_period == pytest.approx(per_second, rel=0.01)
    bench.clock.advance(bench.keyboard.repeat_period - 1)
    assert bench.drain() == b""
    bench.clock.advance(1)
    assert bench.drain() == b"\x1c"


def test_only_the_last_key_repeats(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_A, 1)
    bench.keyboard.key(ic.KEY_B, 1)
    bench.drain()
    bench.clock.advance(501 * MS)
    assert bench.drain() == b"\x32"
    bench.keyboard.key(ic.KEY_A, 0)
    assert bench.drain() == b"\xf0\x1c"
    bench.clock.advance(100 * MS)
    assert bench.drain() == b"\x32"
    bench.keyboard.key(ic.KEY_B, 0)
    bench.drain()
    bench.clock.advance(1000 * MS)
    assert bench.drain() == b""


def test_a_key_does_not_repeat_while_its_code_is_unread(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_UP, 1)
    bench.clock.advance(10_000 * MS)
    assert bench.drain() == b"\xe0\x75"


def test_print_screen_repeats_without_its_fake_shift(bench: Bench) -> None:
    bench.keyboard.key(ic.KEY_SYSRQ, 1)
    bench.drain()
    bench.clock.advance(501 * MS)
    assert bench.drain() == b"\xe0\x7c"


# The buffer


@pytest.mark.parametrize(("scan_code_set", "overrun"), [(1, 0xFF), (2, 0x00), (3, 0x00)])
def test_overrun(bench: Bench, scan_code_set: int, overrun: int) -> None:
    bench.send(0xF0, scan_code_set)
    letters = [getattr(ic, f"KEY_{letter}") for letter in "ABCDEFGHIJKLMNOPQRST"]
    for code in letters:
        bench.keyboard.key(code, 1)
    received = bench.drain()
    assert len(received) == BUFFER_SIZE
    assert received[-1] == overrun
    assert received.count(overrun) == 1
    bench.keyboard.release_all()
    breaks = bench.drain_slowly()
    if scan_code_set != 3:
        assert breaks == (
            b"".join(bytes((0xF0, c)) for c in received[14::-1])
            if scan_code_set == 2
            else bytes(c | 0x80 for c in received[14::-1])
        )


def test_a_sequence_is_sent_whole_or_not_at_all(bench: Bench) -> None:
    for code in (ic.KEY_A, ic.KEY_B, ic.KEY_C, ic.KEY_D, ic.KEY_E, ic.KEY_F, ic.KEY_G, ic.KEY_H):
        bench.keyboard.key(code, 1)
    bench.keyboard.key(ic.KEY_PAUSE, 1)  # eight bytes
    received = bench.drain()
    assert 0xE1 not in received
    assert received[-1] == 0


def test_the_byte_in_the_output_buffer_counts(bench: Bench) -> None:
    letters = [getattr(ic, f"KEY_{letter}") for letter in "ABCDEFGHIJKLMNOPQRST"]
    bench.keyboard.key(letters[0], 1)
    first = bench.keyboard.take()
    for code in letters[1:]:
        bench.keyboard.key(code, 1)
    bench.keyboard.taken()
    assert first == 0x1C
    assert len(bench.drain()) == BUFFER_SIZE - 1


def test_no_break_code_is_lost(bench: Bench) -> None:
    letters = [getattr(ic, f"KEY_{letter}") for letter in "ABCDEFGHIJ"]
    for code in letters:
        bench.keyboard.key(code, 1)
    for code in letters:
        bench.keyboard.key(code, 0)
    bench.keyboard.key(ic.KEY_Z, 1)  # may not overtake the break codes
    received = bench.drain_slowly()
    assert received.count(0xF0) == len(letters)
    assert received[:10].count(0xF0) == 0
    assert received[-2:] == b"\xf0\x3b"
    assert 0x1A not in received
    bench.keyboard.key(ic.KEY_Z, 0)
    assert bench.drain() == b""


def test_release_all_with_a_full_buffer(bench: Bench) -> None:
    for code in list(KEYS)[:60]:
        bench.keyboard.key(code, 1)
    bench.keyboard.release_all()
    received = bench.drain_slowly()
    makes = [b for i, b in enumerate(received) if b not in (0, 0xF0) and (i == 0 or received[i - 1] != 0xF0)]
    breaks = [received[i + 1] for i, b in enumerate(received) if b == 0xF0]
    assert breaks == makes[::-1]


def test_ready_and_on_room(bench: Bench) -> None:
    """A source that waits for the guest: one code is on its way at any time, and all arrive in order."""
    keyboard = bench.keyboard
    script = [(code, value) for code in (ic.KEY_L, ic.KEY_UP, ic.KEY_ENTER) for value in (1, 0)] * 20
    waiting = list(script)

    def pump() -> None:
        while waiting and keyboard.ready:
            keyboard.key(*waiting.pop(0))

    keyboard.on_room = pump
    pump()
    received = bytearray()
    while (value := keyboard.take()) >= 0:
        assert not keyboard.ready
        received.append(value)
        keyboard.taken()
        if not waiting or not keyboard.ready:
            bench.clock.advance(PAUSE)
    assert received.hex(" ") == " ".join(["4b f0 4b e0 75 e0 f0 75 5a f0 5a"] * 20)
    assert keyboard.ready


def test_a_host_that_empties_the_keyboard_comes_to_an_end(bench: Bench) -> None:
    """Linux's i8042_flush() reads a byte each 50 microseconds; after the sixteenth it says "No controller found"."""
    keyboard = bench.keyboard
    waiting = [(code, value) for code in list(KEYS)[:100] for value in (1, 0)]

    def pump() -> None:
        while waiting and keyboard.ready:
            keyboard.key(*waiting.pop(0))

    keyboard.on_room = pump
    pump()
    while waiting or keyboard.down:
        row = 0
        while bench.read() >= 0:
            row += 1
            bench.clock.advance(50_000)
        assert row <= 16 and (row > 8 or not waiting)
        bench.clock.advance(PAUSE)


def test_break_codes_that_waited_for_room_come_in_rows_too(bench: Bench) -> None:
    codes = [getattr(ic, f"KEY_{letter}") for letter in "ABCDEFGHIJKLMNO"]
    for code in codes:
        bench.keyboard.key(code, 1)
    bench.keyboard.release_all()
    rows = []
    while codes_in_a_row := bench.drain():
        rows.append(len(codes_in_a_row))
        bench.clock.advance(PAUSE)
    assert rows == [15, 14, 14, 2]


def test_keys_with_time_between_them_never_pause(bench: Bench) -> None:
    for _ in range(20):
        bench.keyboard.key(ic.KEY_A, 1)
        assert bench.drain() == b"\x1c"
        assert bench.keyboard.ready
        bench.clock.advance(PAUSE)
        bench.keyboard.key(ic.KEY_A, 0)
        assert bench.drain() == b"\xf0\x1c"
        assert bench.keyboard.ready
        bench.clock.advance(PAUSE)


@pytest.mark.parametrize("command", [(0xF6,), (0xF0, 2)])
def test_on_room_after_a_command_that_empties_the_buffer(bench: Bench, command: tuple[int, ...]) -> None:
    """Else a source that waits would wait for ever: nobody will read the codes that are gone."""
    calls: list[bool] = []
    bench.keyboard.key(ic.KEY_A, 1)
    bench.keyboard.on_room = lambda: calls.append(bench.keyboard.ready)
    assert not bench.keyboard.ready
    for value in command:
        bench.keyboard.write(value)
    assert True in calls


def test_on_room_after_enable_and_reset(bench: Bench) -> None:
    calls: list[bool] = []
    bench.keyboard.on_room = lambda: calls.append(bench.keyboard.ready)
    bench.send(0xF5)
    assert calls == []
    bench.send(0xF4)
    assert calls == [True]
    bench.send(0xF5)
    bench.send(0xFF)
    assert calls == [True, True]


def test_random_bytes_and_keys() -> None:
    """Whatever the host sends and whenever it reads, the keyboard holds little and goes on working."""
    chance = random.Random(8042)
    bench = Bench()
    codes = [*KEYS, ic.KEY_PAUSE, ic.KEY_SYSRQ, ic.KEY_HANGEUL, ic.KEY_F24]
    for _ in range(10_000):
        action = chance.randrange(10)
        if action < 4:
            bench.keyboard.write(chance.randrange(256) if action else chance.randrange(0xED, 0x100))
        elif action < 7:
            bench.keyboard.key(chance.choice(codes), chance.randrange(3))
        elif action < 9:
            assert -1 <= bench.read() <= 0xFF
        else:
            bench.clock.advance(chance.randrange(600 * MS))
        held = len(bench.keyboard._reports) + bench.keyboard._taken_report
        assert held <= BUFFER_SIZE
        assert len(bench.keyboard._answers) <= 16
        assert len(bench.keyboard._owed) <= len(codes)
    bench.drain()
    bench.keyboard.release_all()
    bench.send(0xFF)
    assert bench.tap(ic.KEY_A) == b"\x1c\xf0\x1c"
