"""The registers of ACPI's memory hot-plug, as the board's AML uses them and as a hostile guest does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.devices.memory_hotplug import (
    BASE_HIGH,
    BASE_LOW,
    CONTROL,
    EJECT,
    ENABLED,
    INSERTING,
    MAX_SLOTS,
    MEMORY_HOTPLUG_LENGTH,
    OST_EVENT,
    OST_STATUS,
    PROXIMITY,
    REMOVING,
    SELECTOR,
    SIZE_HIGH,
    SIZE_LOW,
    MemoryHotplug,
)
from pyvmm.devices.ost import (
    OST_DEVICE_CHECK,
    OST_EJECT_REQUEST,
    OST_EJECTION_IN_PROGRESS,
    OST_EJECTION_PROCESSING,
    OST_INSERTION_IN_PROGRESS,
    OST_SUCCESS,
)

SLOT = st.integers(0, MAX_SLOTS - 1)
ACCESS = st.tuples(
    st.booleans(),
    st.integers(0, MEMORY_HOTPLUG_LENGTH - 1),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 40)),
)
BASE, SIZE = 0x1_2345_6000, 0x2_8000_0000
IN_USE = 0x81


class Bench:
    """The chip, with memory in the slots of `there`; what is ejected is taken out; `later`, as on the
    board, by take_out()."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.events = 0
        self.ejected: list[int] = []
        self.later = False
        self.refused: list[tuple[int, bool, int]] = []
        self.chip = MemoryHotplug(self._place, self._event, self._eject, self._refused)

    def _place(self, slot: int) -> tuple[int, int] | None:
        return (BASE + (slot << 40), SIZE) if slot in self.there else None

    def _event(self) -> None:
        self.events += 1

    def _eject(self, slot: int) -> None:
        self.ejected.append(slot)
        if not self.later:
            self.take_out(slot)

    def take_out(self, slot: int) -> None:
        self.there.discard(slot)
        self.chip.unplugged(slot)

    def _refused(self, slot: int, was_leaving: bool, status: int) -> None:
        self.refused.append((slot, was_leaving, status))

    def plug(self, slot: int) -> None:
        self.there.add(slot)
        self.chip.plugged(slot)

    def select(self, slot: int) -> None:
        self.chip.write(SELECTOR, 4, slot)

    def dword(self, register: int) -> int:
        return self.chip.read(register, 4)

    def control(self, bits: int) -> None:
        self.chip.write(CONTROL, 1, bits)

    def tell(self, event: int, status: int) -> None:
        self.chip.write(OST_EVENT, 4, event)
        self.chip.write(OST_STATUS, 4, status)

    def image(self) -> list[int]:
        return [self.dword(at) for at in range(0, MEMORY_HOTPLUG_LENGTH, 4)]


def test_what_has_come_is_told_until_it_is_taken_notice_of() -> None:
    bench = Bench()
    bench.plug(3)
    assert bench.events == 1
    assert bench.image() == [0] * 6, "of slot 0, which is empty"
    bench.select(3)
    assert bench.dword(BASE_LOW) | bench.dword(BASE_HIGH) << 32 == BASE + (3 << 40)
    assert bench.dword(SIZE_LOW) | bench.dword(SIZE_HIGH) << 32 == SIZE
    assert bench.dword(PROXIMITY) == 0
    assert bench.dword(CONTROL) == ENABLED | INSERTING
    bench.control(INSERTING)
    assert bench.dword(CONTROL) == ENABLED


def test_what_is_to_go_stays_until_it_is_ejected() -> None:
    bench = Bench()
    bench.plug(3)
    bench.select(3)
    bench.control(INSERTING | EJECT)
    assert bench.ejected == [], "nobody has asked for it"
    bench.chip.ask_to_eject(3)
    assert bench.events == 2 and bench.dword(CONTROL) == ENABLED | REMOVING
    bench.control(REMOVING)
    assert bench.dword(CONTROL) == ENABLED and bench.chip.leaving(3)
    bench.control(EJECT)
    assert bench.ejected == [3] and bench.image() == [0] * 6 and not bench.chip.leaving(3)
    bench.control(EJECT)
    assert bench.ejected == [3]


def test_an_ejection_is_told_once_however_often_the_guest_writes_it() -> None:
    bench = Bench()
    bench.later = True
    bench.plug(3)
    bench.select(3)
    bench.chip.ask_to_eject(3)
    bench.control(EJECT)
    bench.control(EJECT)
    assert bench.ejected == [3]
    bench.chip.ask_to_eject(3)
    bench.control(EJECT)
    assert bench.ejected == [3, 3], "it was asked again"
    bench.chip.stays(3)
    bench.control(EJECT)
    bench.chip.ask_to_eject(3)
    bench.control(EJECT)
    assert bench.ejected == [3, 3, 3], "it could not go, and was asked again"
    bench.take_out(3)
    bench.plug(3)
    bench.chip.ask_to_eject(3)
    bench.control(EJECT)
    assert bench.ejected == [3, 3, 3, 3], "it is another"


@pytest.mark.parametrize("event", [OST_EJECT_REQUEST, OST_EJECTION_PROCESSING])
def test_a_guest_that_does_not_let_go_says_so_once(event: int) -> None:
    bench = Bench()
    bench.plug(1)
    bench.select(1)
    bench.tell(event, IN_USE)
    assert bench.refused == [], "nobody has asked for it"
    bench.chip.ask_to_eject(1)
    bench.tell(event, OST_EJECTION_IN_PROGRESS)
    bench.tell(event, OST_SUCCESS)
    assert bench.chip.leaving(1)
    for _ in range(3):
        bench.tell(event, IN_USE)
    assert bench.refused == [(1, True, IN_USE)] and not bench.chip.leaving(1)
    assert bench.dword(CONTROL) == ENABLED | INSERTING
    bench.control(EJECT)
    assert bench.ejected == [], "it has said that it does not"
    bench.chip.ask_to_eject(1)
    bench.control(EJECT)
    assert bench.ejected == [1]


def test_a_guest_that_does_not_take_it_says_so_once() -> None:
    bench = Bench()
    bench.plug(1)
    bench.select(1)
    bench.tell(OST_DEVICE_CHECK, OST_INSERTION_IN_PROGRESS)
    for _ in range(3):
        bench.tell(OST_DEVICE_CHECK, IN_USE)
    assert bench.refused == [(1, False, IN_USE)]
    bench.plug(2)
    bench.select(2)
    bench.tell(OST_DEVICE_CHECK, OST_SUCCESS)
    bench.tell(OST_DEVICE_CHECK, IN_USE)
    assert len(bench.refused) == 1, "it has said that it took it"


def test_a_reset_forgets_what_nobody_has_taken_notice_of() -> None:
    bench = Bench()
    bench.plug(0)
    bench.chip.ask_to_eject(0)
    bench.select(7)
    bench.chip.reset()
    assert bench.dword(CONTROL) == ENABLED, "of slot 0"
    bench.control(EJECT)
    bench.tell(OST_EJECT_REQUEST, IN_USE)
    assert (bench.ejected, bench.refused) == ([], [])


@pytest.mark.parametrize("slot", [MAX_SLOTS, 1 << 31, 0xFFFFFFFF])
def test_a_slot_that_there_is_not_is_empty(slot: int) -> None:
    bench = Bench()
    for there in range(MAX_SLOTS):
        bench.plug(there)
        bench.chip.ask_to_eject(there)
    bench.select(slot)
    assert bench.image() == [0] * 6
    bench.control(0xFF)
    bench.tell(OST_EJECT_REQUEST, IN_USE)
    assert (bench.ejected, bench.refused) == ([], [])


@given(
    st.lists(st.integers(-40, 40) | st.integers(-(1 << 70), 1 << 70), min_size=7, max_size=7),
    st.lists(ACCESS, max_size=20),
)
def test_whatever_a_file_has(values: list[int], accesses: list[tuple[bool, int, int, int]]) -> None:
    bench = Bench()
    bench.there = set(range(-40, MAX_SLOTS))
    state.load(bench.chip, dict(zip(MemoryHotplug.STATE, values, strict=True)))
    for is_write, offset, size, value in accesses:
        if is_write:
            bench.chip.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= bench.chip.read(offset, size) < 1 << 8 * size
    assert len(bench.image()) == MEMORY_HOTPLUG_LENGTH // 4


@given(st.lists(st.one_of(SLOT, ACCESS), max_size=60), st.sets(SLOT))
def test_a_guest_ejects_and_refuses_only_what_it_was_asked_for(
    steps: list[int | tuple[bool, int, int, int]], asked: set[int]
) -> None:
    """Whatever it reads and writes, at any width and place."""
    bench = Bench()
    for slot in asked:
        bench.plug(slot)
        bench.chip.ask_to_eject(slot)
    for step in steps:
        if isinstance(step, int):
            bench.plug(step)
            continue
        is_write, offset, size, value = step
        if is_write:
            bench.chip.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= bench.chip.read(offset, size) < 1 << 8 * size
    left = [slot for slot, was_leaving, _ in bench.refused if was_leaving]
    done = [*bench.ejected, *left]
    assert set(done) <= asked and len(done) == len(set(done))
    assert {slot for slot in range(MAX_SLOTS) if bench.chip.leaving(slot)} == asked - set(done)


@given(st.integers(0, MEMORY_HOTPLUG_LENGTH - 4), st.sampled_from([1, 2, 4]), SLOT)
def test_any_width_reads_the_bytes_that_dwords_have(offset: int, size: int, slot: int) -> None:
    bench = Bench()
    bench.plug(slot)
    bench.select(slot)
    image = b"".join(dword.to_bytes(4, "little") for dword in bench.image())
    assert bench.chip.read(offset, size) == int.from_bytes(image[offset : offset + size], "little")
