"""The registers of ACPI's PCI hot-plug, as the board's AML uses them and as a hostile guest does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.pci_hotplug import (
    D0,
    D3HOT,
    PCI_DOWN_BASE,
    PCI_EJ_BASE,
    PCI_HOTPLUG_LENGTH,
    PCI_RMV_BASE,
    PCI_SEL_BASE,
    PCI_UP_BASE,
    PRESENT,
    PciHotplug,
)

SLOT = st.integers(0, 31)
ACCESS = st.tuples(
    st.booleans(), st.integers(0, PCI_HOTPLUG_LENGTH - 1), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)
)


class Bench:
    """The chip, with devices in the slots of `there`; one that is ejected is taken out; `later`, as on the
    board, by take_out()."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.events = 0
        self.ejected: list[int] = []
        self.later = False
        self.power: dict[int, bool] = {}
        """Of each slot that it was told to have changed."""
        self.chip = PciHotplug(lambda: sum(1 << slot for slot in self.there), self._event, self._eject, self._look)
        self.chip.slots = 0x3FE

    def _event(self) -> None:
        self.events += 1

    def _eject(self, slot: int) -> None:
        self.ejected.append(slot)
        if not self.later:
            self.take_out(slot)

    def take_out(self, slot: int) -> None:
        self.there.discard(slot)
        self.chip.unplugged(slot)

    def _look(self, slot: int) -> None:
        assert slot in self.there and self.power.get(slot, True) != self.chip.is_powered(slot)
        self.power[slot] = self.chip.is_powered(slot)

    def plug(self, slot: int) -> None:
        self.there.add(slot)
        self.chip.plugged(slot)

    def dword(self, register: int) -> int:
        return self.chip.read(register, 4)


def test_what_has_come_is_told_once() -> None:
    bench = Bench()
    bench.plug(3)
    bench.plug(5)
    assert (bench.events, bench.dword(PRESENT), bench.dword(PCI_RMV_BASE)) == (2, 0x28, 0x3FE)
    assert bench.dword(PCI_UP_BASE) == 0x28
    assert bench.dword(PCI_UP_BASE) == 0
    assert bench.dword(PCI_DOWN_BASE) == 0


def test_what_is_to_go_is_told_until_it_is_gone() -> None:
    bench = Bench()
    bench.plug(3)
    bench.plug(4)
    bench.chip.ask_to_eject(3)
    assert (bench.events, bench.dword(PCI_DOWN_BASE), bench.dword(PCI_DOWN_BASE)) == (3, 8, 8)
    assert bench.chip.leaving(3) and not bench.chip.leaving(4)
    bench.chip.write(PCI_EJ_BASE, 4, 0xFFFFFFFF)
    assert bench.ejected == [3], "slot 4 was not asked for, and stays"
    assert (bench.dword(PCI_DOWN_BASE), bench.dword(PRESENT)) == (0, 0x10)
    assert not bench.chip.leaving(3)


def test_an_ejection_is_told_once_however_often_the_guest_writes_it() -> None:
    bench = Bench()
    bench.later = True
    for slot in (3, 4):
        bench.plug(slot)
        bench.chip.ask_to_eject(slot)
    for slots in (8, 8, 0xFFFFFFFF, 0xFFFFFFFF):
        bench.chip.write(PCI_EJ_BASE, 4, slots)
    assert bench.ejected == [3, 4]
    bench.chip.ask_to_eject(3)
    bench.chip.write(PCI_EJ_BASE, 4, 0xFFFFFFFF)
    assert bench.ejected == [3, 4, 3], "it was asked again"
    bench.take_out(4)
    bench.plug(4)
    bench.chip.ask_to_eject(4)
    bench.chip.write(PCI_EJ_BASE, 4, 0xFFFFFFFF)
    assert bench.ejected == [3, 4, 3, 4], "it is another"


def test_what_went_before_anybody_looked_is_not_told_to_have_come() -> None:
    bench = Bench()
    bench.plug(3)
    bench.chip.ask_to_eject(3)
    bench.chip.write(PCI_EJ_BASE, 4, 8)
    assert (bench.dword(PCI_UP_BASE), bench.dword(PCI_DOWN_BASE)) == (0, 0)


def test_the_guest_puts_slots_into_d3hot_and_back() -> None:
    bench = Bench()
    for slot in (0, 3, 4):
        bench.plug(slot)
    bench.chip.write(D3HOT, 4, 1 << 0 | 1 << 3 | 1 << 5)
    assert bench.power == {3: False}, "slot 0 is none of those that come and go, and 5 is empty"
    assert (bench.dword(D0), bench.dword(D3HOT)) == (1 << 4, 1 << 3)
    bench.chip.write(D3HOT, 4, 0)
    bench.chip.write(D0, 4, 1 << 4)
    assert (bench.dword(D0), bench.dword(D3HOT)) == (1 << 4, 1 << 3), "zeros, and what is so already, change nothing"
    bench.chip.write(D0, 4, 0xFFFFFFFF)
    assert bench.power == {3: True} and bench.dword(D3HOT) == 0
    bench.chip.write(D3HOT + 0, 1, 1 << 4)
    assert bench.power == {3: True, 4: False}
    bench.chip.reset()
    assert bench.power == {3: True, 4: True}


def test_what_comes_next_is_in_d0() -> None:
    bench = Bench()
    bench.plug(3)
    bench.chip.write(D3HOT, 4, 1 << 3)
    bench.chip.ask_to_eject(3)
    bench.chip.write(PCI_EJ_BASE, 4, 1 << 3)
    bench.plug(3)
    assert bench.chip.is_powered(3) and bench.dword(D0) == 1 << 3


def test_there_is_one_bus() -> None:
    bench = Bench()
    bench.plug(3)
    bench.chip.ask_to_eject(3)
    bench.chip.write(PCI_SEL_BASE, 4, 1)
    bench.chip.write(PCI_EJ_BASE, 4, 8)
    assert bench.ejected == []
    assert [bench.dword(at) for at in range(0, PCI_HOTPLUG_LENGTH, 4)] == [0, 0, 0, 0, 1, 0, 0, 0]
    bench.chip.write(PCI_SEL_BASE, 4, 0)
    assert bench.dword(PCI_UP_BASE) == 8


def test_what_the_guest_has_found_empty_is_known_until_the_reset() -> None:
    bench = Bench()
    bench.chip.found_empty(3)
    bench.plug(3)
    assert [slot for slot in range(32) if bench.chip.was_found_empty(slot)] == [3]
    bench.chip.reset()
    assert not bench.chip.was_found_empty(3)


def test_a_reset_forgets_what_nobody_has_taken_notice_of() -> None:
    bench = Bench()
    bench.plug(3)
    bench.chip.ask_to_eject(3)
    bench.chip.write(PCI_SEL_BASE, 1, 7)
    bench.chip.reset()
    assert [bench.dword(at) for at in range(0, PCI_HOTPLUG_LENGTH, 4)] == [0, 0, 0, 0x3FE, 0, 8, 8, 0]
    bench.chip.write(PCI_EJ_BASE, 4, 8)
    assert bench.ejected == []


@given(st.lists(st.one_of(SLOT, ACCESS), max_size=40), st.sets(SLOT))
def test_a_guest_ejects_only_what_it_was_asked_for(
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
    assert set(bench.ejected) <= asked and len(bench.ejected) == len(set(bench.ejected))
    bench.chip.write(PCI_SEL_BASE, 4, 0)
    assert bench.dword(PCI_DOWN_BASE) == sum(1 << slot for slot in asked - set(bench.ejected))


@given(st.integers(0, PCI_HOTPLUG_LENGTH - 4), st.sampled_from([1, 2, 4]), st.sets(SLOT))
def test_any_width_reads_the_bytes_that_dwords_have(offset: int, size: int, slots: set[int]) -> None:
    whole, parts = Bench(), Bench()
    for slot in slots:
        for bench in (whole, parts):
            bench.plug(slot)
            bench.chip.ask_to_eject(slot)
    image = b"".join(whole.dword(at).to_bytes(4, "little") for at in range(0, PCI_HOTPLUG_LENGTH, 4))
    assert parts.chip.read(offset, size) == int.from_bytes(image[offset : offset + size], "little")
