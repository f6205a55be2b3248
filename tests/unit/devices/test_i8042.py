"""The 8042 at its ports, with its keyboard and mouse, as a guest sees it."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.clock import FakeClock
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.ps2_keyboard import BUFFER_SIZE, PAUSE, Ps2Keyboard
from pyvmm.devices.ps2_mouse import Ps2Mouse
from pyvmm.devices.scancodes import KEYS, sequences
from pyvmm.input import codes as ic
from pyvmm.irq import FakeIrq
from pyvmm.trace import Channel

MS = 1_000_000
OBF, SYS, CMDDAT, KEYLOCK, AUXDATA, TIMEOUT = 0x01, 0x04, 0x08, 0x10, 0x20, 0x40
KBDINT, AUXINT, KBDDIS, AUXDIS, XLATE = 0x01, 0x02, 0x10, 0x20, 0x40
ACK = 0xFA


class Pc:
    """An 8042 on its two ports, both devices on it, and a guest that reads and writes bytes."""

    def __init__(self, mouse: bool = True) -> None:
        self.clock = FakeClock()
        self.trace: list[str] = []
        self.channel = Channel("i8042", lambda _ns, _name, message: self.trace.append(message))
        self.channel.enabled = False
        self.irq1 = FakeIrq()
        self.irq12 = FakeIrq()
        self.resets = 0
        self.a20: list[bool] = []
        self.keyboard = Ps2Keyboard(self.clock, trace=self.channel)
        self.mouse = Ps2Mouse(self.clock, self.channel)
        self.chip = I8042(
            self.irq1,
            self.irq12,
            self._reset,
            self.a20.append,
            self.keyboard,
            self.mouse if mouse else None,
            self.channel,
        )
        self.bus = Bus("io", 0x10000)
        self.bus.map(0x60, 1, self.chip, 0)
        self.bus.map(0x64, 1, self.chip, 4)

    def _reset(self) -> None:
        self.resets += 1

    @property
    def status(self) -> int:
        return self.bus.read(0x64, 1)

    def data(self) -> int:
        return self.bus.read(0x60, 1)

    def command(self, command: int, *options: int) -> None:
        self.bus.write(0x64, 1, command)
        for option in options:
            self.bus.write(0x60, 1, option)

    def ask(self, command: int, *options: int) -> int:
        """A command with an answer."""
        self.command(command, *options)
        assert self.status & OBF
        return self.data()

    def to_keyboard(self, *values: int) -> bytes:
        for value in values:
            self.bus.write(0x60, 1, value)
        return self.drain()

    def to_mouse(self, *values: int) -> bytes:
        for value in values:
            self.command(0xD4, value)
        return self.drain(AUXDATA)

    def drain(self, aux: int = 0) -> bytes:
        received = bytearray()
        while self.status & OBF:
            assert self.status & AUXDATA == aux
            received.append(self.data())
        return bytes(received)

    def check_lines(self) -> None:
        """Both lines are what the output buffer and the command byte make them."""
        status = self.status
        ctr = self.chip._ctr
        assert self.irq1.level == (status & (OBF | AUXDATA) == OBF and ctr & KBDINT != 0)
        assert self.irq12.level == (status & (OBF | AUXDATA) == OBF | AUXDATA and ctr & AUXINT != 0)


@pytest.fixture
def pc() -> Pc:
    return Pc()


# Power-on and the command byte


def test_power_on(pc: Pc) -> None:
    assert pc.status == KEYLOCK | SYS
    assert pc.ask(0x20) == XLATE | AUXDIS | SYS | KBDINT
    assert pc.a20 == []


def test_command_byte(pc: Pc) -> None:
    for value in (0x00, 0x47, 0xFF, 0x65):
        pc.command(0x60, value)
        assert pc.ask(0x20) == value
        assert pc.status & SYS == value & SYS


def test_ram(pc: Pc) -> None:
    for index in range(1, 32):
        pc.command(0x60 + index, index ^ 0xA5)
    assert [pc.ask(0x20 + index) for index in range(1, 32)] == [index ^ 0xA5 for index in range(1, 32)]


def test_cmddat(pc: Pc) -> None:
    pc.command(0xAE)
    assert pc.status & CMDDAT
    pc.bus.write(0x60, 1, 0xEE)
    assert not pc.status & CMDDAT


def test_self_tests(pc: Pc) -> None:
    pc.command(0x60, 0x00)
    assert not pc.status & SYS
    assert pc.ask(0xAA) == 0x55
    assert pc.status & SYS
    assert pc.ask(0xAB) == 0
    assert pc.ask(0xA9) == 0


def test_port_switches(pc: Pc) -> None:
    pc.command(0xAD)
    assert pc.ask(0x20) & KBDDIS
    pc.command(0xAE)
    assert not pc.ask(0x20) & KBDDIS
    pc.command(0xA8)
    assert not pc.ask(0x20) & AUXDIS
    pc.command(0xA7)
    assert pc.ask(0x20) & AUXDIS
    assert pc.ask(0xE0) == 1
    pc.command(0xA8)
    pc.command(0xAD)
    assert pc.ask(0xE0) == 2


def test_input_port(pc: Pc) -> None:
    assert pc.ask(0xC0) == 0x80


def test_an_unknown_command_is_ignored(pc: Pc) -> None:
    for command in (0x00, 0x1F, 0x40, 0x80, 0xA0, 0xA6, 0xAC, 0xC3, 0xDE, 0xE1, 0xFF):
        pc.command(command)
        assert not pc.status & OBF
    assert pc.resets == 0
    assert pc.to_keyboard(0xEE) == b"\xee"


def test_a_command_takes_the_place_of_an_option(pc: Pc) -> None:
    pc.command(0x60)
    assert pc.ask(0x20, 0xEE) == 0x65  # 0xEE went to the keyboard
    assert pc.data() == 0xEE


def test_wide_accesses_and_other_offsets(pc: Pc) -> None:
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.bus.read(0x60, 4) == 0xFFFFFF1E
    pc.bus.write(0x60, 2, 0xFFEE)
    assert pc.data() == 0xEE
    assert pc.chip.read(1, 1) == 0xFF
    pc.chip.write(1, 1, 0xFE)
    assert pc.resets == 0


# The output buffer and the lines


def test_one_byte_is_in_the_buffer_and_every_byte_is_an_edge(pc: Pc) -> None:
    pc.keyboard.key(ic.KEY_UP, 1)
    assert (pc.irq1.level, pc.irq1.edges) == (True, 1)
    assert pc.status & (OBF | AUXDATA) == OBF
    assert pc.data() == 0xE0
    assert (pc.irq1.level, pc.irq1.edges) == (True, 2)
    assert pc.data() == 0x48
    assert (pc.irq1.level, pc.irq1.edges) == (False, 2)
    assert not pc.status & OBF
    assert pc.data() == 0x48  # an empty buffer reads as it was
    assert pc.irq12.edges == 0


def test_mouse_bytes_are_marked(pc: Pc) -> None:
    pc.command(0x60, 0x47)
    assert pc.to_mouse(0xF4) == bytes((ACK,))
    edges = pc.irq12.edges
    pc.mouse.motion(1, 2)
    assert pc.status & (OBF | AUXDATA) == OBF | AUXDATA
    assert pc.irq12.level
    assert pc.drain(AUXDATA) == b"\x28\x01\xfe"
    assert pc.irq12.edges == edges + 3
    assert not pc.irq12.level
    assert pc.irq1.edges == 0


def test_the_keyboard_goes_before_the_mouse(pc: Pc) -> None:
    pc.command(0x60, 0x47)
    pc.to_mouse(0xF4)
    pc.mouse.motion(1, 0)
    pc.keyboard.key(ic.KEY_A, 1)
    received = []
    while pc.status & OBF:
        received.append((pc.status & AUXDATA, pc.data()))
    assert received == [(AUXDATA, 0x08), (0, 0x1E), (AUXDATA, 1), (AUXDATA, 0)]


def test_interrupts_off(pc: Pc) -> None:
    pc.command(0x60, 0x44)
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.status & OBF
    assert not pc.irq1.level
    pc.command(0x60, 0x45)
    assert pc.irq1.level
    pc.command(0x60, 0x44)
    assert not pc.irq1.level
    assert pc.data() == 0x1E


def test_disabled_ports_hold_their_bytes(pc: Pc) -> None:
    pc.command(0xAD)
    pc.keyboard.key(ic.KEY_A, 1)
    assert not pc.status & OBF
    pc.command(0xAE)
    assert pc.drain() == b"\x1e"
    pc.to_mouse(0xF4)
    pc.command(0xA7)
    pc.mouse.motion(1, 0)
    assert not pc.status & OBF
    pc.command(0xA8)
    assert pc.drain(AUXDATA) == b"\x08\x01\x00"


def test_sending_opens_a_disabled_port(pc: Pc) -> None:
    pc.command(0x60, KBDDIS | AUXDIS)
    assert pc.to_keyboard(0xEE) == b"\xee"
    assert pc.to_mouse(0xF2) == b"\xfa\x00"
    assert pc.ask(0x20) == 0


def test_the_controllers_answer_goes_before_a_scan_code(pc: Pc) -> None:
    pc.keyboard.key(ic.KEY_UP, 1)
    edges = pc.irq1.edges
    assert pc.ask(0x20) == 0x65
    assert pc.irq1.edges > edges
    assert pc.drain() == b"\xe0\x48"
    pc.keyboard.key(ic.KEY_UP, 0)
    pc.command(0x20)
    assert pc.ask(0xAA) == 0x55  # the answer before was not read: it is gone, the scan code is not
    assert pc.drain() == b"\xe0\xc8"


def test_the_controllers_answer_goes_before_a_mouse_byte(pc: Pc) -> None:
    pc.command(0x60, 0x47)
    pc.to_mouse(0xF4)
    pc.mouse.motion(1, 0)
    assert pc.irq12.level
    pc.command(0x20)
    pc.check_lines()
    assert not pc.irq12.level
    assert pc.data() == 0x47
    assert pc.irq12.level
    assert pc.drain(AUXDATA) == b"\x08\x01\x00"


# Translation


def test_every_key_translated(pc: Pc) -> None:
    for key in (*KEYS, ic.KEY_PAUSE, ic.KEY_SYSRQ):
        expected = sequences(1, key)
        if expected is not None:
            pc.keyboard.key(key, 1)
            assert pc.drain() == expected[0]
            pc.keyboard.key(key, 0)
            assert pc.drain() == expected[1]


@pytest.mark.parametrize("scan_code_set", [1, 2, 3])
def test_every_key_untranslated(pc: Pc, scan_code_set: int) -> None:
    pc.command(0x60, 0x05)
    assert pc.to_keyboard(0xF0, scan_code_set) == bytes((ACK, ACK))
    assert pc.to_keyboard(0xFA) == bytes((ACK,))
    for key in (*KEYS, ic.KEY_PAUSE, ic.KEY_SYSRQ):
        expected = sequences(scan_code_set, key)
        if expected is not None:
            pc.keyboard.key(key, 1)
            assert pc.drain() == expected[0]
            pc.keyboard.key(key, 0)
            assert pc.drain() == expected[1]


def test_the_answers_are_translated_too(pc: Pc) -> None:
    # 0x83 comes out as 0x41, and Linux knows a translated keyboard by just that; sets 1, 2 and 3 as 43, 41 and 3f.
    assert pc.to_keyboard(0xF2) == b"\xfa\xab\x41"
    assert pc.to_keyboard(0xF0, 0) == b"\xfa\xfa\x41"
    assert pc.to_keyboard(0xFF) == b"\xfa\xaa"
    pc.command(0x60, 0x05)
    assert pc.to_keyboard(0xF2) == b"\xfa\xab\x83"
    assert pc.to_keyboard(0xF0, 0) == b"\xfa\xfa\x02"


def test_translation_switched_between_prefix_and_code(pc: Pc) -> None:
    pc.keyboard.key(ic.KEY_A, 1)
    pc.data()
    pc.command(0x60, 0x05)
    pc.keyboard.key(ic.KEY_A, 0)
    assert pc.data() == 0xF0
    pc.command(0x60, 0x45)
    assert pc.drain() == b"\x1c"  # it was in the buffer already
    pc.keyboard.key(ic.KEY_B, 1)
    assert pc.drain() == b"\x30"


# Loopback, output port, reset


def test_loopback(pc: Pc) -> None:
    pc.command(0x60, 0x47)
    pc.command(0xD2, 0x1E)
    assert pc.irq1.level
    assert pc.status & (OBF | AUXDATA) == OBF
    assert pc.data() == 0x1E
    pc.command(0xD3, 0xA5)
    assert pc.irq12.level
    assert pc.status & (OBF | AUXDATA) == OBF | AUXDATA
    assert pc.data() == 0xA5
    assert (pc.irq1.edges, pc.irq12.edges) == (1, 1)


def test_output_port_and_a20(pc: Pc) -> None:
    assert pc.ask(0xD0) == 0xC7
    pc.command(0xA8)
    assert pc.ask(0xD0) == 0xCF
    pc.command(0xD1, 0xDD)
    assert pc.a20 == [False]
    assert not pc.ask(0xD0) & 0x02
    pc.command(0xD1, 0xDD)
    pc.command(0xD1, 0xDF)
    assert pc.a20 == [False, True]
    pc.command(0xDD)
    pc.command(0xDD)
    pc.command(0xDF)
    assert pc.a20 == [False, True, False, True]
    assert pc.resets == 0
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.ask(0xD0) & 0x30 == 0x10
    pc.data()
    pc.command(0xAD)
    assert not pc.ask(0xD0) & 0x40


def test_a20_without_a_gate() -> None:
    chip = I8042(FakeIrq(), FakeIrq(), lambda: None)
    chip.write(4, 1, 0xDD)
    chip.write(4, 1, 0xD0)
    assert not chip.read(0, 1) & 0x02


def test_cpu_reset(pc: Pc) -> None:
    pc.command(0xFE)
    assert pc.resets == 1
    pc.command(0xF0)
    assert pc.resets == 2
    for command in range(0xF1, 0x100, 2):
        pc.command(command)
    assert pc.resets == 2
    pc.command(0xD1, 0xFE)
    assert pc.resets == 3
    assert pc.a20 == []


def test_machine_reset(pc: Pc) -> None:
    pc.command(0x60, 0x47)
    pc.command(0x61, 0x12)
    pc.command(0xDD)
    pc.keyboard.key(ic.KEY_UP, 1)
    pc.command(0x60)
    pc.keyboard.reset()
    pc.mouse.reset()
    pc.chip.reset()
    assert pc.status == KEYLOCK | SYS
    assert not pc.irq1.level
    assert not pc.irq12.level
    assert pc.ask(0x20) == 0x65
    assert pc.ask(0x21) == 0
    assert pc.ask(0xD0) & 0x02
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.drain() == b"\x1e"


def test_an_empty_mouse_port() -> None:
    pc = Pc(mouse=False)
    assert pc.ask(0xD3, 0x5A) == 0x5A
    pc.command(0xD4, 0xF2)
    assert pc.status & (OBF | AUXDATA | TIMEOUT) == OBF | AUXDATA | TIMEOUT
    assert pc.data() == 0xFE
    assert not pc.status & TIMEOUT


def test_empty_ports() -> None:
    chip = I8042(FakeIrq(), FakeIrq(), lambda: None)
    chip.write(0, 1, 0xF2)
    assert chip.read(4, 1) & (OBF | AUXDATA | TIMEOUT) == OBF | TIMEOUT
    assert chip.read(0, 1) == 0xFE
    chip.write(4, 1, 0x20)
    assert chip.read(0, 1) == 0x45 | AUXDIS  # the keyboard's port was opened


# The probes of Linux (drivers/input/serio/i8042.c, keyboard/atkbd.c, mouse/psmouse-base.c), step by step


class LinuxDriver:
    """What the drivers send and insist on: any assertion here is a warning, or a missing device, in dmesg."""

    def __init__(self, pc: Pc) -> None:
        self.pc = pc
        self.ctr = 0

    def flush(self) -> None:
        for _ in range(16):
            if not self.pc.status & OBF:
                return
            self.pc.clock.advance(50_000)
            self.pc.data()
        assert not self.pc.status & OBF, "i8042: No controller found"

    def wctr(self, set_bits: int = 0, clear: int = 0) -> None:
        self.ctr = self.ctr & ~clear | set_bits
        self.pc.command(0x60, self.ctr)

    def aux_loop(self, value: int) -> int:
        self.pc.command(0xD3, value)
        assert self.pc.status & OBF
        assert self.pc.status & AUXDATA
        return self.pc.data()

    def toggle_aux(self, on: bool) -> None:
        self.pc.command(0xA8 if on else 0xA7)
        assert (not self.pc.ask(0x20) & AUXDIS) == on

    def probe_controller(self) -> None:
        pc = self.pc
        self.flush()
        assert pc.ask(0x20) == pc.ask(0x20)
        self.ctr = pc.ask(0x20)
        assert self.ctr & XLATE
        assert pc.status & KEYLOCK
        self.wctr(KBDDIS, KBDINT)
        self.flush()
        # check_aux
        assert self.aux_loop(0x5A) == 0x5A
        self.toggle_aux(False)
        self.toggle_aux(True)
        self.wctr(AUXINT, AUXDIS)
        edges = pc.irq12.edges
        pc.command(0xD3, 0xA5)
        assert pc.irq12.edges == edges + 1
        assert pc.status & AUXDATA
        assert pc.data() == 0xA5
        self.wctr(AUXDIS, AUXINT)
        # set_mux_mode: the third byte must come back as it was, or there is a multiplexer
        self.flush()
        assert [self.aux_loop(value) for value in (0xF0, 0x56, 0xA4)] == [0xF0, 0x56, 0xA4]
        self.wctr(AUXINT, AUXDIS)
        self.wctr(KBDINT, KBDDIS)

    def ps2_command(self, aux: bool, command: int, *options: int, receive: int = 0) -> bytes:
        """One byte at a time, each after the interrupt that brings the acknowledgement of the one before."""
        line = self.pc.irq12 if aux else self.pc.irq1
        for value in (command, *options):
            edges = line.edges
            if aux:
                self.pc.command(0xD4, value)
            else:
                self.pc.bus.write(0x60, 1, value)
            assert line.edges == edges + 1
            assert self.pc.status & (OBF | AUXDATA) == (OBF | AUXDATA if aux else OBF)
            assert self.pc.data() == ACK
        answer = bytearray()
        for _ in range(receive):
            assert line.level
            answer.append(self.pc.data())
        assert not self.pc.status & OBF
        return bytes(answer)

    def probe_keyboard(self) -> None:
        assert self.ps2_command(False, 0xF2, receive=2)[0] == 0xAB
        self.ps2_command(False, 0xF5)
        self.ps2_command(False, 0xED, 0)
        self.ps2_command(False, 0xF3, 0)
        self.ps2_command(False, 0xF4)

    def probe_mouse(self) -> int:
        assert self.ps2_command(True, 0xF2, receive=1) == b"\x00"
        self.ps2_command(True, 0xF6)
        for rates in ((200, 100, 80), (200, 200, 80)):
            for rate in rates:
                self.ps2_command(True, 0xF3, rate)
            identity = self.ps2_command(True, 0xF2, receive=1)[0]
        self.ps2_command(True, 0xF3, 100)
        self.ps2_command(True, 0xE8, 3)
        self.ps2_command(True, 0xE6)
        self.ps2_command(True, 0xF4)
        return identity


def test_linux_probes(pc: Pc) -> None:
    linux = LinuxDriver(pc)
    linux.probe_controller()
    linux.probe_keyboard()
    assert linux.probe_mouse() == 4
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.drain() == b"\x1e"
    pc.mouse.motion(1, -1)
    assert pc.drain(AUXDATA) == b"\x08\x01\x01\x00"


def test_linux_probes_after_a_flood(pc: Pc) -> None:
    """i8042_flush() gives up after 16 bytes, so no more than that may ever wait."""
    for key in list(KEYS)[:40]:
        pc.keyboard.key(key, 1)
    for _ in range(100):
        pc.mouse.motion(1, 1)
    LinuxDriver(pc).probe_controller()


def test_linux_probes_while_a_thousand_keys_wait(pc: Pc) -> None:
    """Typed ahead by a source that waits for the guest: each byte that i8042_flush() reads may let the next one in."""
    keyboard = pc.keyboard
    waiting = [(key, value) for key in list(KEYS)[:50] * 10 for value in (1, 0)]

    def pump() -> None:
        while waiting and keyboard.ready:
            keyboard.key(*waiting.pop(0))

    keyboard.on_room = pump
    pump()
    LinuxDriver(pc).probe_controller()
    assert waiting


def test_panic_blink(pc: Pc) -> None:
    # i8042_panic_blink() sends both bytes without reading what comes back.
    for led in (0x05, 0x00) * 20:
        pc.bus.write(0x60, 1, 0xED)
        pc.bus.write(0x60, 1, led)
        assert pc.keyboard.leds == (1 << ic.LED_SCROLLL | 1 << ic.LED_CAPSL if led else 0)


# Watching it


def test_trace_of_a_key_press(pc: Pc) -> None:
    """Steps 1, 2, 3 and 9 of the drawing: translation, output buffer, IRQ 1, data returned."""
    pc.channel.enabled = True
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.data() == 0x1E
    assert pc.trace == [
        "keyboard: KEY_A down -> 1c (scan code set 2)",
        "translation 1c -> 1e",
        "output buffer = 0x1e, OBF",
        "IRQ 1 up",
        "read of port 0x60 returns 0x1e, OBF clear",
    ]
    pc.trace.clear()
    pc.keyboard.key(ic.KEY_A, 0)
    assert "translation f0 1c -> 9e" in pc.trace


def test_everything_is_traced_without_error(pc: Pc) -> None:
    pc.channel.enabled = True
    pc.command(0x60, 0x47)
    pc.to_mouse(0xF4)
    pc.mouse.motion(1, 1)
    for command in range(256):
        pc.command(command, 0xFF)
    pc.keyboard.key(ic.KEY_F24, 1)
    assert "command 0xd4" in pc.trace
    assert "option 0xff of command 0xd4" in pc.trace
    assert "A20 closed" in pc.trace
    assert "CPU reset by pulse of the output port" in pc.trace
    assert any(line.startswith("output buffer = ") and line.endswith("OBF AUXDATA") for line in pc.trace)


# Typing fast, and hostile guests


def decode_set_1(received: bytes | bytearray) -> list[tuple[int, int]]:
    """Key events in *received*, by a table that is turned around from the keyboard's."""
    by_code = {pair[0]: key for key in KEYS if (pair := sequences(1, key)) is not None}
    events = []
    prefix = b""
    for code in received:
        if code == 0xE0:
            prefix = b"\xe0"
        else:
            events.append((by_code[prefix + bytes((code & 0x7F,))], int(code < 0x80)))
            prefix = b""
    return events


def test_ten_thousand_keys_by_a_source_that_waits(pc: Pc) -> None:
    """The guest reads a byte an interrupt; the source sends the next key when the guest has taken the last."""
    chance = random.Random(1)
    keys = [key for key in KEYS if sequences(1, key) is not None]
    script = [(key, value) for key in chance.choices(keys, k=10_000) for value in (1, 0)]
    position = 0

    def pump() -> None:
        nonlocal position
        while position < len(script) and pc.keyboard.ready:
            position += 1
            pc.keyboard.key(*script[position - 1])

    pc.keyboard.on_room = pump
    pump()
    received = bytearray()
    edges = 0
    while pc.irq1.level:
        assert pc.irq1.edges == edges + 1
        edges += 1
        received.append(pc.data())
        if chance.random() < 0.01:
            pc.clock.advance(700 * MS)  # a slow guest: no key repeats because of it
        elif not pc.irq1.level:
            pc.clock.advance(PAUSE)
    assert decode_set_1(received) == script
    assert pc.keyboard.ready


def test_ten_thousand_keys_by_a_source_that_does_not_wait(pc: Pc) -> None:
    """Bursts of a few keys, each byte read late but before the buffer is full: nothing is lost, the order kept."""
    chance = random.Random(2)
    keys = [key for key in KEYS if sequences(1, key) is not None]
    received = bytearray()
    sent: list[tuple[int, int]] = []
    while len(sent) < 20_000:
        for _ in range(chance.randrange(1, 3)):
            key = chance.choice(keys)
            for value in (1, 0):
                pc.keyboard.key(key, value)
                sent.append((key, value))
        while pc.status & OBF:
            received.append(pc.data())
            pc.check_lines()
    assert decode_set_1(received) == sent


def run(pc: Pc, operations: list[tuple[int, int]]) -> None:
    keys = [*KEYS, ic.KEY_PAUSE, ic.KEY_SYSRQ]
    for kind, value in operations:
        if kind == 0:
            pc.bus.write(0x64, 1, value)
        elif kind == 1:
            pc.bus.write(0x60, 1, value)
        elif kind <= 3:
            before = pc.status & OBF
            edges = pc.irq1.edges + pc.irq12.edges
            assert 0 <= pc.data() <= 0xFF
            assert pc.irq1.edges + pc.irq12.edges <= edges + before  # at most one byte comes into the buffer
        elif kind == 4:
            pc.keyboard.key(keys[value % len(keys)], value >> 7)
        elif kind == 5:
            pc.mouse.motion(value - 128, 128 - value)
        elif kind == 6:
            pc.mouse.button(ic.BTN_LEFT + value % 5, value > 127)
        elif kind == 7:
            pc.clock.advance(value * 3 * MS)
        elif kind == 8:
            pc.command(0xD4, value)
        else:
            pc.keyboard.release_all()
        pc.check_lines()
        assert pc.status & 0x82 == 0
        assert len(pc.keyboard._reports) + pc.keyboard._taken_report <= BUFFER_SIZE
        assert len(pc.keyboard._answers) <= 16
        assert len(pc.mouse._answers) <= 16
        assert len(pc.mouse._reports) <= 4


def recovers(pc: Pc) -> None:
    """A guest that starts over has a working keyboard and mouse."""
    pc.keyboard.release_all()
    pc.mouse.release_all()
    pc.command(0x60, 0x47)
    while pc.status & OBF:
        pc.data()
    assert pc.to_keyboard(0xFF) == b"\xfa\xaa"
    assert pc.to_mouse(0xFF) == b"\xfa\xaa\x00"
    assert pc.to_mouse(0xF4) == b"\xfa"
    pc.keyboard.key(ic.KEY_A, 1)
    assert pc.drain() == b"\x1e"
    pc.mouse.motion(1, 0)
    assert pc.drain(AUXDATA) == b"\x08\x01\x00"


def test_ten_thousand_random_commands(pc: Pc) -> None:
    chance = random.Random(3)
    kinds = (0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9)
    run(pc, [(chance.choice(kinds), chance.randrange(256)) for _ in range(10_000)])
    recovers(pc)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255)), max_size=60))
def test_any_sequence(operations: list[tuple[int, int]]) -> None:
    pc = Pc()
    run(pc, operations)
    recovers(pc)


def test_a_read_is_cheap(pc: Pc) -> None:
    """About a microsecond; the bound leaves room for a busy machine."""
    best = 1.0
    read = pc.chip.read
    for _ in range(200):
        for key in (ic.KEY_A, ic.KEY_B, ic.KEY_C, ic.KEY_D):
            pc.keyboard.key(key, 1)
        start = time.perf_counter()
        for _ in range(4):
            read(0, 1)
        best = min(best, time.perf_counter() - start)
        pc.keyboard.release_all()
        for _ in range(4):
            read(0, 1)
    assert best / 4 < 5e-6
