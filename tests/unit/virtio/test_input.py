"""virtio-input beyond the contract: the standard identity, batches, what is lost when the guest does not read, LEDs."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices.ps2_keyboard import Ps2Keyboard
from pyvmm.input import codes as ic
from pyvmm.virtio.device import RING_FEATURES
from pyvmm.virtio.input import (
    BACKLOG_EVENTS,
    Identity,
    VirtioKeyboard,
    VirtioMouse,
    VirtioTablet,
    virtio_input_functions,
)
from tests.rig.input_fakes import make_router
from tests.rig.virtio_driver import Driver, Virtio

VERSION_1, PACKED = 1 << 32, 1 << 34
DATA = 0x100000
SYN = (0, 0, 0)


class Reader:
    """A guest's driver of eventq: posts 8-byte buffers and reads what comes, batch by batch."""

    def __init__(self, guest: Virtio, features: int, buffers: int = 64, size: int | None = None) -> None:
        self.guest = guest
        self.queue: Driver = guest.setup(features, size)[0]
        self.posted: dict[int, int] = {}
        self.spare = [DATA + 8 * i for i in range(buffers)]
        self.refill()

    def refill(self, count: int = 1000) -> None:
        while self.spare and count:
            added = self.queue.add([(self.spare[-1], 8, True)])
            if added is None:
                break
            self.posted[added] = self.spare.pop()
            count -= 1
        if self.queue.needs_kick():
            self.guest.kick(0)

    def read(self) -> list[tuple[int, int, int]]:
        events = []
        for buffer_id, length in self.queue.used():
            assert length == 8
            gpa = self.posted.pop(buffer_id)
            self.spare.append(gpa)
            events.append(struct.unpack("<HHi", self.guest.board.ram.read(gpa, 8)))
        return events


def batches(events: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    found: list[list[tuple[int, int, int]]] = [[]]
    for event in events:
        if event == SYN:
            found.append([])
        else:
            found[-1].append(event)
    assert found.pop() == [], "half a batch"
    return found


IDENTITIES: list[Identity] = ["aero", "standard"]


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | 1 << 29, VERSION_1 | PACKED, RING_FEATURES])
def test_ten_thousand_keys(features: int) -> None:
    keyboard = VirtioKeyboard("standard")
    reader = Reader(Virtio.of(keyboard), features)
    kicks = 0
    for i in range(10000):
        assert keyboard.send([(ic.EV_KEY, 1 + i % 100, i & 1)])
        reader.guest.board.run_later()
        assert reader.read() == [(ic.EV_KEY, 1 + i % 100, i & 1), SYN]
        before = len(reader.spare)
        reader.refill()
        kicks += before and not reader.posted
    assert kicks == 0


def test_while_nothing_waits_the_guest_need_not_kick() -> None:
    for features in (VERSION_1, RING_FEATURES):
        keyboard = VirtioKeyboard("standard")
        reader = Reader(Virtio.of(keyboard), features)
        keyboard.key(ic.KEY_A, 1)
        reader.read()
        reader.queue.add([(DATA, 8, True)])
        assert not reader.queue.needs_kick()


def test_a_batch_is_one_interrupt() -> None:
    tablet = VirtioTablet()
    guest = Virtio.of(tablet)
    reader = Reader(guest, VERSION_1)
    guest.msix()
    tablet.absolute(100, 200)
    assert guest.messages == [0x41]
    assert batches(reader.read()) == [[(3, 0, 100), (3, 1, 200)]]


def test_standard_identity_is_qemus() -> None:
    devices = [VirtioKeyboard("standard"), VirtioMouse("standard"), VirtioTablet("standard")]
    names = [b"QEMU Virtio Keyboard", b"QEMU Virtio Mouse", b"QEMU Virtio Tablet"]
    for number, (device, function) in enumerate(zip(devices, virtio_input_functions(devices), strict=True)):
        assert (function.subsystem_id, function.device_id, function.revision_id) == (0x1100, 0x1052, 1)
        guest = Virtio.of(device)
        assert guest.offered() == RING_FEATURES
        guest.write(0x3000, 2, 1)
        assert guest.read(0x3008, 8) == int.from_bytes(names[number][:8], "little")
        assert guest.read(0x3002, 1) == len(names[number])
        guest.write(0x3000, 2, 3)
        ids = struct.pack("<HHHH", 6, 0x0627, number + 1, 1 if number == 0 else 2)
        assert guest.read(0x3008, 8) == int.from_bytes(ids, "little")
        guest.write(0x3000, 2, 2)
        assert guest.read(0x3002, 1) == 0, "no serial number"
        guest.write(0x3000, 2, 0x11 | ic.EV_REP << 8)
        assert guest.read(0x3002, 1) == (1 if number == 0 else 0), "the guest repeats held keys of the keyboard itself"


@pytest.mark.parametrize("identity", IDENTITIES)
def test_events_that_the_guest_was_not_told_of_are_left_out(identity: Identity) -> None:
    mouse = VirtioMouse(identity)
    reader = Reader(Virtio.of(mouse), VERSION_1)
    assert mouse.send([(ic.EV_REL, 0x0B, 120), (ic.EV_REL, ic.REL_WHEEL, 1), (ic.EV_KEY, ic.KEY_A, 1), SYN, (99, 0, 0)])
    assert reader.read() == [(ic.EV_REL, ic.REL_WHEEL, 1), SYN]
    assert not mouse.send([(ic.EV_KEY, ic.KEY_A, 1)])
    assert not mouse.send([])
    mouse.hwheel(1)
    assert batches(reader.read()) == ([[(2, ic.REL_HWHEEL, 1)]] if identity == "aero" else [])


def test_before_driver_ok_nothing_is_kept() -> None:
    keyboard = VirtioKeyboard()
    guest = Virtio.of(keyboard)
    assert not keyboard.send([(ic.EV_KEY, ic.KEY_A, 1)])
    reader = Reader(guest, VERSION_1)
    assert reader.read() == []
    assert keyboard.ready


def test_driver_ok_is_told() -> None:
    told: list[bool] = []
    keyboard = VirtioKeyboard(on_driver_ok=told.append)
    guest = Virtio.of(keyboard)
    Reader(guest, VERSION_1)
    assert told == [True] and keyboard.driver_ok
    guest.status = 0
    assert told == [True, False] and not keyboard.driver_ok


def test_batches_wait_for_buffers_and_room_is_told() -> None:
    keyboard = VirtioKeyboard()
    room: list[bool] = []
    keyboard.on_room = lambda: room.append(keyboard.ready)
    reader = Reader(Virtio.of(keyboard), VERSION_1, buffers=3)
    assert keyboard.send([(1, 30, 1)]) and keyboard.send([(1, 31, 1)]) and keyboard.send([(1, 32, 1)])
    assert not keyboard.ready
    assert batches(reader.read()) == [[(1, 30, 1)]]
    reader.refill()
    assert batches(reader.read()) == [[(1, 31, 1)]] and room == []
    reader.refill()
    assert batches(reader.read()) == [[(1, 32, 1)]] and room == [True]


def test_no_key_sticks_when_the_guest_stops_reading() -> None:
    keyboard = VirtioKeyboard()
    reader = Reader(Virtio.of(keyboard), VERSION_1, buffers=2)
    keyboard.key(ic.KEY_A, 1)
    for _ in range(BACKLOG_EVENTS):
        keyboard.key(ic.KEY_B, 1)
        keyboard.key(ic.KEY_B, 0)
    keyboard.key(ic.KEY_C, 1)
    keyboard.key(ic.KEY_A, 0)
    down: set[int] = set()
    total = 0
    for _ in range(BACKLOG_EVENTS):
        for batch in batches(reader.read()):
            total += 1
            for _, code, value in batch:
                (down.add if value else down.discard)(code)
        reader.refill()
        if keyboard.ready:
            reader.refill()
            break
    reader.spare += [DATA + 0x1000 + 8 * i for i in range(60)]
    for _ in range(BACKLOG_EVENTS):
        reader.refill()
        for batch in batches(reader.read()):
            for _, code, value in batch:
                (down.add if value else down.discard)(code)
    assert keyboard.ready
    assert down == {ic.KEY_C}


def test_the_place_of_the_pointer_is_set_right_after_a_gap() -> None:
    tablet = VirtioTablet()
    reader = Reader(Virtio.of(tablet), VERSION_1)
    for i in range(10000):
        tablet.absolute(i, 2 * i)
    events: list[tuple[int, int, int]] = []
    while batch := reader.read():
        events += batch
        reader.refill()
    batches(events)
    assert [e for e in events if e[:2] == (3, 0)][-1] == (3, 0, 9999)
    assert [e for e in events if e[:2] == (3, 1)][-1] == (3, 1, 19998)


def test_a_batch_larger_than_the_queue_is_dropped_whole_and_set_right() -> None:
    keyboard = VirtioKeyboard()
    reader = Reader(Virtio.of(keyboard), VERSION_1, size=4)
    assert not keyboard.send([(1, code, 1) for code in range(1, 8)])
    down = set()
    for _ in range(10):
        for batch in batches(reader.read()):
            down |= {code for _, code, _ in batch}
        reader.refill()
    assert down == set(range(1, 8)) and keyboard.ready


@pytest.mark.parametrize("size", [1, 2])
def test_a_queue_too_small_for_anything_does_no_harm(size: int) -> None:
    keyboard = VirtioKeyboard()
    reader = Reader(Virtio.of(keyboard), VERSION_1, size=size)
    for code in range(1, 100):
        keyboard.key(code, 1)
        reader.refill()
        reader.read()


def test_a_buffer_too_small_needs_a_reset() -> None:
    keyboard = VirtioKeyboard()
    guest = Virtio.of(keyboard)
    queue = guest.setup(VERSION_1)[0]
    queue.add([(DATA, 7, True)])
    queue.add([(DATA, 8, True)])
    assert not keyboard.send([(1, 30, 1)])
    assert guest.status & 0x40 and queue.used() == []
    reader = Reader(guest, VERSION_1)
    keyboard.key(31, 1)
    assert batches(reader.read()) == [[(1, 31, 1)]]


def test_leds_are_told_once_a_change() -> None:
    leds: list[tuple[int, bool]] = []
    keyboard = VirtioKeyboard("standard", on_led=lambda led, on: leds.append((led, on)))
    guest = Virtio.of(keyboard)
    status = guest.setup(VERSION_1)[1]
    for code, value in ((1, 1), (1, 1), (0, 1), (3, 1), (1, 0), (9, 1)):
        guest.board.ram.write(DATA, struct.pack("<HHi", ic.EV_LED, code, value))
        status.add([(DATA, 8, False)])
        guest.kick(1)
    assert leds == [(ic.LED_CAPSL, True), (ic.LED_NUML, True), (ic.LED_CAPSL, False)]


def test_a_new_driver_switches_leds_that_the_old_one_left_on() -> None:
    """Meanwhile the guest's PS/2 driver may have turned them off."""
    leds: list[tuple[int, bool]] = []
    keyboard = VirtioKeyboard("standard", on_led=lambda led, on: leds.append((led, on)))
    guest = Virtio.of(keyboard)
    for _ in range(2):
        status = guest.setup(VERSION_1)[1]
        guest.board.ram.write(DATA, struct.pack("<HHi", ic.EV_LED, ic.LED_CAPSL, 1))
        status.add([(DATA, 8, False)])
        guest.kick(1)
    assert leds == [(ic.LED_CAPSL, True), (ic.LED_CAPSL, True)]


def test_a_position_beyond_32_bits_is_set_right_once() -> None:
    tablet = VirtioTablet()
    reader = Reader(Virtio.of(tablet), VERSION_1, buffers=2)
    for x in range(BACKLOG_EVENTS):
        tablet.send([(ic.EV_ABS, ic.ABS_X, x + (1 << 32))])
    events: list[tuple[int, int, int]] = []
    while batch := reader.read():
        events += batch
        assert len(events) <= 2 * BACKLOG_EVENTS, "no end"
        reader.refill()
    assert batches(events)[-1] == [(ic.EV_ABS, ic.ABS_X, BACKLOG_EVENTS - 1)] and tablet.ready


def test_a_reset_puts_the_selectors_back() -> None:
    guest = Virtio.of(VirtioKeyboard())
    guest.write(0x3000, 2, 0x0311)
    assert guest.read(0x3000, 2) == 0x0311
    guest.status = 0
    assert guest.read(0x3000, 4) == 0


def test_with_the_router() -> None:
    keyboard, mouse = VirtioKeyboard(), VirtioMouse()
    router = make_router("auto", virtio_keyboard=keyboard, virtio_mouse=mouse)
    source = router.source("test")
    source.key(ic.KEY_A, 1)
    source.key(ic.KEY_A, 0)
    reader = Reader(Virtio.of(keyboard), VERSION_1, buffers=4)
    for code in range(1, 21):
        source.key(code, 1)
        source.key(code, 0)
    events: list[tuple[int, int, int]] = []
    while batch := reader.read():
        events += batch
        reader.refill()
    assert batches(events) == [[(1, code, value)] for code in range(1, 21) for value in (1, 0)]
    assert router.keyboard_idle


@pytest.mark.parametrize("held", [(ic.BTN_LEFT,), (ic.BTN_LEFT, ic.BTN_RIGHT, ic.BTN_MIDDLE)])
def test_a_broken_ring_is_found_while_the_buttons_are_let_go(held: tuple[int, ...]) -> None:
    """The release that the mouse's driver brings about tells the tablet that its driver is gone, which lets go too."""
    tablet, mouse = VirtioTablet("standard"), VirtioMouse("standard")
    router = make_router("auto", virtio_mouse=mouse, virtio_tablet=tablet)
    source = router.source("test")
    first = Virtio.of(tablet)
    Reader(first, VERSION_1)
    (function,) = virtio_input_functions([mouse])
    first.board.host.root.add(function, 11)
    second = Virtio(first.board, function, first.board.ecam(0, 11), 0xC2000000, 0xC3000000).map()
    for code in held:
        source.key(code, 1)
    first.board.ram.write_int(0x10000 + 16 * 64 + 2, 2, 0x7FFF)  # its available index leaps
    queue = second.setup(VERSION_1, base=0x40000)[0]
    assert not tablet.driver_ok and mouse.driver_ok and not router.absolute
    source.release_all()
    for i in range(2):
        queue.add([(DATA + 8 * i, 8, True)])
    source.key(ic.BTN_LEFT, 1)
    assert [length for _, length in queue.used()] == [8, 8], "the mouse has the next press, and nothing before it"


def codes(keyboard: Ps2Keyboard) -> str:
    """What the guest's i8042 driver reads now."""
    found = []
    while (code := keyboard.take()) >= 0:
        found.append(code)
        keyboard.taken()
    return bytes(found).hex(" ")


def test_a_key_held_while_the_driver_comes_or_goes_sticks_on_neither_side() -> None:
    ps2, keyboard = Ps2Keyboard(FakeClock()), VirtioKeyboard()
    router = make_router("auto", ps2_keyboard=ps2, virtio_keyboard=keyboard)
    source = router.source("test")
    guest = Virtio.of(keyboard)
    source.key(ic.KEY_A, 1)
    source.key(ic.KEY_B, 1)  # waits until the guest has read the first
    reader = Reader(guest, VERSION_1)
    assert codes(ps2) == "1c 32 f0 1c f0 32", "both are let go where they were pressed"
    source.key(ic.KEY_A, 0)
    source.key(ic.KEY_C, 1)
    source.key(ic.KEY_B, 0)
    assert batches(reader.read()) == [[(ic.EV_KEY, ic.KEY_C, 1)]]
    guest.status = 0
    source.key(ic.KEY_C, 0)
    assert codes(ps2) == ""
    source.key(ic.KEY_D, 1)
    source.key(ic.KEY_D, 0)
    assert codes(ps2) == "23 f0 23"
    assert Reader(guest, VERSION_1).read() == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("key"), st.integers(1, 5), st.integers(0, 1)),
        st.tuples(st.just("burst"), st.integers(1, 70), st.integers(1, 3)),
        st.tuples(st.just("read"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("features", [VERSION_1, RING_FEATURES])
@settings(max_examples=40, deadline=None)
@given(steps=STEPS, size=st.sampled_from([2, 4, 64]))
def test_the_guest_ends_up_with_the_keys_that_are_down(
    features: int, steps: list[tuple[str, int, int]], size: int
) -> None:
    keyboard = VirtioKeyboard("standard")
    guest = Virtio.of(keyboard)
    reader = Reader(guest, features, 64, size)
    truth: set[int] = set()
    down: set[int] = set()

    def take() -> int:
        events = reader.read()
        for batch in batches(events):
            for _, code, value in batch:
                (down.add if value else down.discard)(code)
        return len(events)

    for step, a, b in steps:
        if step == "key":
            keyboard.key(a, b)
            (truth.add if b else truth.discard)(a)
        elif step == "burst":
            for i in range(a * b):
                keyboard.key(10 + i % 7, 1)
                keyboard.key(10 + i % 7, 0)
        elif step == "read":
            take()
            reader.refill(a)
        else:
            reader = Reader(guest, features, 64, size)
            truth.clear()
            down.clear()
    for _ in range(2000):
        if not take() and keyboard.ready:
            break
        reader.refill()
    assert keyboard.ready and down == truth
