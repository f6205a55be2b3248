"""AERO-W7-VIRTIO 1.0, line by line: what the contract asks of a virtio-input device, and that this one does it."""

from __future__ import annotations

import struct
from typing import cast

import pytest

from pyvmm.input import codes as ic
from pyvmm.memory import GuestMemory
from pyvmm.testing.pci import Board, Config, scan
from pyvmm.virtio.input import VirtioInput, VirtioKeyboard, VirtioMouse, VirtioTablet, virtio_input_functions
from tests.rig.virtio_driver import SplitDriver, Virtio

VERSION_1, INDIRECT = 1 << 32, 1 << 28
DATA = 0x100000
KEYBOARD, MOUSE, TABLET = 0, 1, 2
ALL = (KEYBOARD, MOUSE, TABLET)


class Aero:
    """The three functions at 00:0a, as the machine plugs them in."""

    def __init__(self) -> None:
        self.board = Board()
        self.leds: list[tuple[int, bool]] = []
        self.keyboard = VirtioKeyboard(on_led=lambda led, on: self.leds.append((led, on)))
        self.mouse, self.tablet = VirtioMouse(), VirtioTablet()
        self.devices: tuple[VirtioInput, ...] = (self.keyboard, self.mouse, self.tablet)
        self.functions = virtio_input_functions(self.devices)
        for number, function in enumerate(self.functions):
            self.board.host.root.add(function, 10, number)

    def config(self, number: int) -> Config:
        return self.board.ecam(0, 10, number)

    def guest(self, number: int) -> Virtio:
        guest = Virtio(self.board, self.functions[number], self.config(number))
        guest.bar0 += 0x10000 * number
        guest.bar2 += 0x10000 * number
        return guest.map()

    def select(self, number: int, select: int, subsel: int = 0) -> bytes:
        """What the driver reads: it writes select and subsel, then reads size and payload byte by byte."""
        guest = self.guest(number)
        guest.write(0x3000, 1, select)
        guest.write(0x3001, 1, subsel)
        assert guest.read(0x3000, 2) == select | subsel << 8
        assert guest.read(0x3003, 4) == 0 and guest.read(0x3007, 1) == 0
        size = guest.read(0x3002, 1)
        payload = bytes(guest.read(0x3008 + i, 1) for i in range(128))
        assert payload[size:] == bytes(128 - size)
        return payload[:size]

    def codes(self, number: int, kind: int) -> set[int]:
        bitmap = self.select(number, 0x11, kind)
        return {i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1}


@pytest.fixture
def aero() -> Aero:
    return Aero()


# Transport


@pytest.mark.parametrize("number", ALL)
def test_ids(aero: Aero, number: int) -> None:
    config = aero.config(number)
    assert config.read(0, 4) == 0x10521AF4
    assert config.read(8, 1) == 0x01
    assert config.read(0x2C, 2) == 0x1AF4
    assert config.read(0x2E, 2) == 0x0010 + number


def test_no_io_bar_and_nothing_transitional(aero: Aero) -> None:
    for number in ALL:
        flags = [aero.config(number).size_bar(i)[0] for i in (0, 2, 3, 4, 5)]
        assert not any(f & 1 for f in flags)
        assert not 0x1000 <= aero.config(number).read(2, 2) < 0x1040


def test_one_multi_function_device_at_0a(aero: Aero) -> None:
    assert scan(aero.board.ports) == {(0, 10, n): (0x1AF4, 0x1052) for n in ALL}
    assert aero.config(KEYBOARD).read(0x0E, 1) == 0x80


def test_the_tablet_is_optional() -> None:
    board = Board()
    for number, function in enumerate(virtio_input_functions([VirtioKeyboard(), VirtioMouse()])):
        board.host.root.add(function, 10, number)
    assert set(scan(board.ecam)) == {(0, 10, 0), (0, 10, 1)}


@pytest.mark.parametrize("number", ALL)
def test_bar0_is_64_bit_memory_of_0x4000_bytes(aero: Aero, number: int) -> None:
    assert aero.config(number).size_bar(0) == (4, 0x4000)


@pytest.mark.parametrize("number", ALL)
def test_the_fixed_layout(aero: Aero, number: int) -> None:
    config = aero.config(number)
    found = {
        config.read(at + 3, 1): (config.read(at + 4, 1), config.read(at + 8, 4), config.read(at + 12, 4))
        for cap, at in config.capabilities()
        if cap == 9
    }
    assert found[1] == (0, 0x0000, 0x100)
    assert found[2] == (0, 0x1000, 0x100)
    assert found[3] == (0, 0x2000, 0x20)
    assert found[4] == (0, 0x3000, 0x100)


def test_undefined_offsets_read_zero_and_ignore_writes_at_every_width(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    for size in (1, 2, 4, 8):
        for offset in (
            *range(0x38, 0x1000, 0x39),
            *range(0x1008, 0x2000, 0x101),
            0x2008,
            0x2020,
            0x3088,
            0x3100,
            0x3FF8,
        ):
            guest.write(offset, size, (1 << 8 * size) - 1)
            assert guest.read(offset, size) == 0


@pytest.mark.parametrize("number", ALL)
def test_capability_list(aero: Aero, number: int) -> None:
    config = aero.config(number)
    assert config.read(6, 2) & 0x10
    capabilities = list(config.capabilities())  # fails where the chain is cyclic or not aligned
    assert capabilities[0][1] == config.read(0x34, 1)
    for cap, at in capabilities:
        if cap == 9:
            assert config.read(at + 2, 1) >= (20 if config.read(at + 3, 1) == 2 else 16)


def test_notify_multiplier_and_offsets(aero: Aero) -> None:
    config, guest = aero.config(KEYBOARD), aero.guest(KEYBOARD)
    notify = next(at for cap, at in config.capabilities() if cap == 9 and config.read(at + 3, 1) == 2)
    assert config.read(notify + 16, 4) == 4
    for queue in (0, 1):
        guest.write(22, 2, queue)
        assert guest.read(30, 2) == queue


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("doorbells", [True, False])
def test_doorbells_of_16_and_32_bits(size: int, doorbells: bool) -> None:
    guest = Virtio.of(VirtioKeyboard(), doorbells=doorbells)
    status = guest.setup(VERSION_1)[1]
    status.add([(DATA, 8, False)])
    guest.kick(1, size)
    assert len(status.used()) == 1


def test_feature_selects_other_than_0_and_1(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    guest.write(0, 4, 2)
    assert guest.read(4, 4) == 0
    guest.write(8, 4, 2)
    guest.write(12, 4, 0xFFFFFFFF)
    assert guest.read(12, 4) == 0
    assert guest.accept(VERSION_1), "and what was written there does not count"


def test_unsupported_features_clear_features_ok(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    for bit in (0, 24, 27, 29, 30, 33, 34, 40):
        assert not guest.accept(VERSION_1 | 1 << bit)
    assert guest.accept(VERSION_1 | INDIRECT)


def test_status_0_resets_queues_interrupts_features(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    events = guest.setup(VERSION_1)[0]
    events.add([(DATA, 8, True)] * 1)
    events.add([(DATA + 8, 8, True)])
    aero.keyboard.key(ic.KEY_A, 1)
    assert guest.line
    guest.status = 0
    assert not guest.line and guest.read(0x2000, 1) == 0
    for queue in (0, 1):
        guest.write(22, 2, queue)
        assert [guest.read(at, size) for at, size in ((24, 2), (28, 2), (32, 8), (40, 8), (48, 8))] == [64, 0, 0, 0, 0]
    for select in (0, 1):
        guest.write(8, 4, select)
        assert guest.read(12, 4) == 0
    assert not aero.keyboard.driver_ok


def test_queue_select_beyond_the_last(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    assert guest.read(18, 2) == 2
    guest.write(22, 2, 2)
    assert guest.read(24, 2) == 0 and guest.read(30, 2) == 0
    for at in (24, 28, 32, 40, 48):
        guest.write(at, 2, 1)
        assert guest.read(at, 2) == 0


def test_isr(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    events = guest.setup(VERSION_1)[0]
    for i in range(2):
        events.add([(DATA + 8 * i, 8, True)])
    aero.keyboard.key(ic.KEY_A, 1)
    assert guest.line
    assert guest.read(0x2000, 1) == 1 and not guest.line
    assert guest.read(0x2000, 1) == 0
    aero.keyboard.config_changed()
    assert guest.line and guest.read(0x2000, 1) == 2


@pytest.mark.parametrize("number", ALL)
def test_intx_is_inta(aero: Aero, number: int) -> None:
    assert aero.config(number).read(0x3D, 1) == 1


def test_msix_enabled_is_msix_only(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    status = guest.setup(VERSION_1)[1]
    guest.msix()

    def complete_one() -> tuple[list[int], bool]:
        status.add([(DATA, 8, False)])
        guest.kick(1)
        assert len(status.used()) == 1
        return guest.messages, guest.line

    assert complete_one() == ([0x42], False)
    guest.board.memory_bus.write(0xC1000000 + 16 * 2 + 12, 4, 1)
    assert complete_one() == ([], False), "masked"
    guest.board.memory_bus.write(0xC1000000 + 16 * 2, 4, 0)
    guest.board.memory_bus.write(0xC1000000 + 16 * 2 + 12, 4, 0)
    assert complete_one() == ([], False), "unprogrammed"
    guest.write(22, 2, 1)
    guest.write(26, 2, 0xFFFF)
    assert complete_one() == ([], False), "no vector"
    aero.config(KEYBOARD).write(aero.config(KEYBOARD).find(0x11) + 2, 2, 0)
    guest.read(0x2000, 1)
    assert complete_one() == ([], True), "MSI-X off: INTx with the ISR"
    assert guest.read(0x2000, 1) == 1


# Queues


@pytest.mark.parametrize("number", ALL)
def test_eventq_and_statusq_of_64(aero: Aero, number: int) -> None:
    guest = aero.guest(number)
    assert guest.read(18, 2) == 2
    for queue in (0, 1):
        guest.write(22, 2, queue)
        assert guest.read(24, 2) == 64


@pytest.mark.parametrize("number", ALL)
def test_offered_features(aero: Aero, number: int) -> None:
    assert aero.guest(number).offered() == VERSION_1 | INDIRECT


def test_any_alignment_and_length_and_addresses_above_4_gib() -> None:
    high = 5 << 30
    board = Board(ram=GuestMemory([(0, memoryview(bytearray(16 << 20))), (high, memoryview(bytearray(1 << 20)))]))
    keyboard = VirtioKeyboard()
    guest = Virtio.of(keyboard, board)
    guest.accept(VERSION_1)
    driver = SplitDriver(board.ram, high, 64)
    guest.program(0, driver)
    guest.status = 15
    places = [(high + 0x80001, 8), (high + 0x80103, 9), (DATA + 7, 333), (high + (1 << 20) - 8, 8)]
    for gpa, length in places:
        driver.add([(gpa, length, True)])
    keyboard.send([(ic.EV_KEY, code, 1) for code in (ic.KEY_A, ic.KEY_B, ic.KEY_C)])
    assert [length for _, length in driver.used()] == [8] * 4
    got = [struct.unpack("<HHi", board.ram.read(gpa, 8)) for gpa, _ in places]
    assert got == [(1, ic.KEY_A, 1), (1, ic.KEY_B, 1), (1, ic.KEY_C, 1), (0, 0, 0)]


def test_an_event_buffer_in_pieces_and_in_an_indirect_table(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    events = guest.setup(VERSION_1 | INDIRECT)[0]
    events.add([(DATA, 3, True), (DATA + 100, 1, True), (DATA + 200, 60, True)], 0x80000)
    events.add([(DATA + 300, 8, True)])
    aero.keyboard.key(ic.KEY_A, 1)
    ram = guest.board.ram
    assert ram.read(DATA, 3) + ram.read(DATA + 100, 1) + ram.read(DATA + 200, 4) == struct.pack("<HHi", 1, ic.KEY_A, 1)


@pytest.mark.parametrize(("gpa", "length"), [(16 << 20, 8), ((16 << 20) - 4, 8), ((1 << 64) - 4, 8), (1 << 63, 8)])
@pytest.mark.parametrize("queue", [0, 1])
def test_each_address_is_bounds_checked(aero: Aero, gpa: int, length: int, queue: int) -> None:
    guest = aero.guest(KEYBOARD)
    driver = guest.setup(VERSION_1)[queue]
    driver.add([(gpa, length, queue == 0)])
    guest.kick(queue)
    driver.add([(DATA, 8, queue == 0)])
    aero.keyboard.key(ic.KEY_A, 1)
    assert guest.status & 0x40


def test_avail_no_interrupt_is_honoured(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    events = guest.setup(VERSION_1)[0]
    events.arm(False)
    for i in range(4):
        events.add([(DATA + 8 * i, 8, True)])
    aero.keyboard.key(ic.KEY_A, 1)
    assert len(events.used()) == 2 and not guest.line
    events.arm(True)
    aero.keyboard.key(ic.KEY_A, 0)
    assert guest.line


def test_one_event_a_used_entry_of_length_8(aero: Aero) -> None:
    guest = aero.guest(MOUSE)
    events = guest.setup(VERSION_1)[0]
    for i in range(10):
        events.add([(DATA + 64 * i, 64, True)])
    aero.mouse.motion(-3, 4)
    assert [length for _, length in events.used()] == [8, 8, 8]
    read = [struct.unpack("<HHi", guest.board.ram.read(DATA + 64 * i, 8)) for i in range(4)]
    assert read == [(ic.EV_REL, ic.REL_X, -3), (ic.EV_REL, ic.REL_Y, 4), (0, 0, 0), (0, 0, 0)]


def test_every_statusq_buffer_is_consumed_whatever_it_says(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    status = guest.setup(VERSION_1 | INDIRECT)[1]
    ram = guest.board.ram
    ram.write(DATA, struct.pack("<HHi", ic.EV_LED, ic.LED_CAPSL, 1))
    ram.write(DATA + 8, struct.pack("<HHi", 0xFFFF, 0xFFFF, -1))
    buffers = [
        [(DATA, 8, False)],
        [(DATA + 8, 8, False)],
        [(DATA, 3, False)],
        [(DATA, 0, False)],
        [(DATA, 4096, False)],
        [(DATA, 8, True)],
        [(DATA, 4, False), (DATA + 4, 4, False)],
    ]
    for chain in buffers:
        status.add(chain)
    guest.kick(1)
    assert [length for _, length in status.used()] == [0] * len(buffers)
    assert aero.leds == [(ic.LED_CAPSL, True)], "a change is told once"
    assert not guest.status & 0x40


# Device configuration


def test_id_name(aero: Aero) -> None:
    names = [aero.select(number, 0x01) for number in ALL]
    assert names == [b"Aero Virtio Keyboard", b"Aero Virtio Mouse", b"Aero Virtio Tablet"]


@pytest.mark.parametrize("number", ALL)
def test_id_serial(aero: Aero, number: int) -> None:
    assert aero.select(number, 0x02) == b"0"


@pytest.mark.parametrize("number", ALL)
def test_id_devids(aero: Aero, number: int) -> None:
    assert struct.unpack("<HHHH", aero.select(number, 0x03)) == (0x0006, 0x1AF4, number + 1, 1)


def test_event_types(aero: Aero) -> None:
    assert aero.codes(KEYBOARD, 0) == {ic.EV_SYN, ic.EV_KEY, ic.EV_LED}
    assert aero.codes(MOUSE, 0) == {ic.EV_SYN, ic.EV_KEY, ic.EV_REL}
    assert aero.codes(TABLET, 0) == {ic.EV_SYN, ic.EV_KEY, ic.EV_ABS}


REQUIRED_KEYS = [
    *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
    *("ENTER", "ESC", "BACKSPACE", "TAB", "SPACE"),
    *("LEFTSHIFT", "RIGHTSHIFT", "LEFTCTRL", "RIGHTCTRL", "LEFTALT", "RIGHTALT"),
    *("CAPSLOCK", "NUMLOCK", "SCROLLLOCK"),
    *(f"F{n}" for n in range(1, 13)),
    *("UP", "DOWN", "LEFT", "RIGHT", "INSERT", "DELETE", "HOME", "END", "PAGEUP", "PAGEDOWN"),
]


def test_keyboard_keys(aero: Aero) -> None:
    assert {cast(int, getattr(ic, f"KEY_{name}")) for name in REQUIRED_KEYS} <= aero.codes(KEYBOARD, ic.EV_KEY)
    assert ic.KEY_RESERVED not in aero.codes(KEYBOARD, ic.EV_KEY)
    assert not any(0x100 <= code < 0x160 for code in aero.codes(KEYBOARD, ic.EV_KEY)), "a keyboard has no buttons"


def test_keyboard_leds(aero: Aero) -> None:
    leds = {ic.LED_NUML, ic.LED_CAPSL, ic.LED_SCROLLL}
    assert leds <= aero.codes(KEYBOARD, ic.EV_LED) <= leds | {ic.LED_COMPOSE, ic.LED_KANA}


def test_mouse_axes_and_buttons(aero: Aero) -> None:
    axes = {ic.REL_X, ic.REL_Y, ic.REL_WHEEL}
    assert axes <= aero.codes(MOUSE, ic.EV_REL) <= axes | {ic.REL_HWHEEL}
    buttons = {ic.BTN_LEFT, ic.BTN_RIGHT, ic.BTN_MIDDLE, ic.BTN_SIDE, ic.BTN_EXTRA}
    assert buttons <= aero.codes(MOUSE, ic.EV_KEY) <= buttons | {ic.BTN_FORWARD, ic.BTN_BACK, ic.BTN_TASK}


def test_tablet_axes_and_their_range(aero: Aero) -> None:
    assert aero.codes(TABLET, ic.EV_ABS) == {ic.ABS_X, ic.ABS_Y}
    for axis in (ic.ABS_X, ic.ABS_Y):
        assert struct.unpack("<iiiii", aero.select(TABLET, 0x12, axis)) == (0, 32767, 0, 0, 0)


@pytest.mark.parametrize("number", ALL)
def test_every_other_selector_has_size_0(aero: Aero, number: int) -> None:
    kinds = {KEYBOARD: {0, ic.EV_KEY, ic.EV_LED}, MOUSE: {0, ic.EV_KEY, ic.EV_REL}, TABLET: {0, ic.EV_KEY, ic.EV_ABS}}
    known = {(1, 0), (2, 0), (3, 0)} | {(0x11, kind) for kind in kinds[number]}
    known |= {(0x12, ic.ABS_X), (0x12, ic.ABS_Y)} if number == TABLET else set()
    guest = aero.guest(number)
    for select in range(256):
        for subsel in (0, 1, 2, 3, 4, 5, 0x11, 0x12, 0x14, 0x15, 0x7F, 0xFF):
            guest.write(0x3000, 2, select | subsel << 8)
            assert (guest.read(0x3002, 1) != 0) == ((select, subsel) in known)


def test_press_release_no_auto_repeat_and_syn_report(aero: Aero) -> None:
    guest = aero.guest(KEYBOARD)
    events = guest.setup(VERSION_1)[0]
    for i in range(8):
        events.add([(DATA + 8 * i, 8, True)])
    for value in (1, 2, 2, 0):
        aero.keyboard.key(ic.KEY_A, value)
    got = [struct.unpack("<HHi", guest.board.ram.read(DATA + 8 * i, 8)) for i in range(len(events.used()))]
    assert got == [(1, ic.KEY_A, 1), (0, 0, 0), (1, ic.KEY_A, 0), (0, 0, 0)]
