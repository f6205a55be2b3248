"""Where memory that is plugged in goes, without a KVM: the guest's side is the chip's ports."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.board import layout, memslots
from pyvmm.board.dimm import Dimm
from pyvmm.board.memory_banks import MemoryBanks
from pyvmm.board.placement import Parts
from pyvmm.bus import Bus
from pyvmm.clock import FakeClock
from pyvmm.config import ConfigError, MachineConfig
from pyvmm.devices.acpi_pm import ACPI_ENABLE, GPE0_EN, GPE0_STS, AcpiPm
from pyvmm.devices.memory_hotplug import (
    CONTROL,
    EJECT,
    GPE_MEMORY_HOTPLUG,
    INSERTING,
    OST_EVENT,
    OST_STATUS,
    REMOVING,
    SELECTOR,
)
from pyvmm.devices.ost import OST_DEVICE_CHECK
from pyvmm.errors import UserError
from pyvmm.irq import FakeIrq
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import GIB, MIB, size_text

BLOCK = 128 * MIB
FIRST = 4 * GIB
SLOTS = 5
CONFIG = MachineConfig(memory=MIB, memory_slots=SLOTS, max_memory=MIB + 10 * BLOCK)


class Bench:
    def __init__(self, config: MachineConfig = CONFIG) -> None:
        self.pio = Bus("PIO", 1 << 16)
        self.memory = GuestMemory.of_size(MIB)
        self.pm = AcpiPm(FakeIrq(), FakeClock(0), lambda: None)
        self.ejected: list[Dimm] = []
        self.refused: list[tuple[Dimm, bool, int]] = []
        self.banks = MemoryBanks(Parts(self.pio, Bus("MMIO", 1 << 52)), config, self.memory, self.pm)
        self.banks.ejected = self.ejected.append
        self.banks.refused = lambda *what: self.refused.append(what)

    def turn_acpi_on(self) -> None:
        self.pm.apm.write(0, 1, ACPI_ENABLE)
        self.pm.write(GPE0_EN, 2, 1 << GPE_MEMORY_HOTPLUG)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.pio.write(layout.MEMORY_HOTPLUG + register, size, value)

    def control(self, slot: int) -> int:
        self.write(SELECTOR, slot)
        return self.pio.read(layout.MEMORY_HOTPLUG + CONTROL, 1)

    @property
    def plugged(self) -> list[tuple[int, int]]:
        return [region for region in self.memory.regions if region[0] >= FIRST]


def test_the_guest_is_told_of_what_came_and_lets_go_of_it() -> None:
    bench, dimm = Bench(), Dimm("256M")
    bench.banks.plug(dimm)
    assert (dimm.slot, dimm.address) == (0, FIRST)
    assert bench.plugged == [(FIRST, 2 * BLOCK)]
    assert bench.control(0) & INSERTING == 0 and not bench.pm.read(GPE0_STS, 2), "nobody has said it yet"
    bench.banks.tell(dimm)
    assert bench.control(0) & INSERTING and bench.pm.read(GPE0_STS, 2) == 1 << GPE_MEMORY_HOTPLUG
    with pytest.raises(UserError, match="its guest does not use ACPI"):
        bench.banks.ask_to_eject(dimm)
    bench.turn_acpi_on()
    bench.banks.ask_to_eject(dimm)
    assert bench.banks.leaving(dimm) and bench.control(0) & REMOVING
    bench.write(CONTROL, EJECT, 1)
    assert bench.ejected == [dimm] and bench.plugged == [(FIRST, 2 * BLOCK)], "it goes when all stands still"
    bench.banks.remove(dimm)
    assert bench.plugged == [] and (dimm.slot, dimm.region) == (None, None)
    assert bench.control(0) == 0 and not bench.banks.leaving(dimm)
    bench.banks.remove(dimm)


def test_what_the_guest_says_of_it_is_heard() -> None:
    bench, dimm = Bench(), Dimm("128M")
    bench.banks.plug(dimm, 3)
    bench.banks.tell(dimm)
    bench.write(SELECTOR, 3)
    bench.write(OST_EVENT, OST_DEVICE_CHECK)
    bench.write(OST_STATUS, 0x81)
    assert bench.refused == [(dimm, False, 0x81)]


def test_a_listener_that_does_not_take_it_says_why() -> None:
    class Refusing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def added(self, region: Region) -> None:
            if region.gpa >= FIRST:
                raise self.error

        def removed(self, region: Region) -> None: ...

    for error, why in (
        (UserError("not so high"), "^not so high$"),
        (ConfigError("KVM refuses it", {"memory": BLOCK}), "^KVM refuses it$"),
        (OSError(7, "Argument list too long"), "a device of the machine does not take it: .*Argument list too long"),
    ):
        bench, before = Bench(replace(CONFIG, memory_shared=True)), len(os.listdir("/proc/self/fd"))
        bench.memory.watch(Refusing(error))
        dimm = Dimm("128M")
        with pytest.raises(UserError, match=why):
            bench.banks.plug(dimm)
        assert (dimm.slot, dimm.region, bench.plugged) == (None, None, [])
        assert len(os.listdir("/proc/self/fd")) == before


def test_pages_of_the_hosts_pool() -> None:
    bench = Bench(replace(CONFIG, memory_hugetlb=GIB))
    with pytest.raises(UserError, match="RAM is in pages of 1G, and the size is no multiple of it"):
        bench.banks.plug(Dimm("128M"))


def test_a_host_that_gives_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memslots, "map_memory", refuse)
    with pytest.raises(UserError, match=r"^Cannot allocate memory: ask for less"):
        Bench().banks.plug(Dimm("128M"))


@pytest.mark.parametrize("size", ["0", "64M", "129M", "1", "-128M", "much", "", "128M,", "٣G"])
def test_no_size(size: str) -> None:
    with pytest.raises(ValueError, match=r"multiple of 128M|is no size"):
        Dimm(size)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(-1, 6), st.none() | st.integers(-3, 50))))
def test_wherever_it_goes_nothing_lies_over_another(steps: list[tuple[int, int | None, int | None]]) -> None:
    """A size in blocks, or 0: the first is taken out; a slot, an address in blocks from 4 GiB on."""
    bench, there = Bench(), list[Dimm]()
    for blocks, slot, at in steps:
        if blocks == 0:
            if there:
                bench.banks.remove(there.pop(0))
        else:
            dimm = Dimm(size_text(blocks * BLOCK), address=None if at is None else FIRST + at * BLOCK)
            before = bench.plugged
            try:
                bench.banks.plug(dimm, slot)
            except UserError as error:
                assert "\n" not in str(error) and bench.plugged == before and dimm.slot is None
                free = 10 * BLOCK - sum(size for _, size in before)
                if blocks == 1 and free and len(there) < SLOTS:
                    assert slot is not None or at is not None, "else there is room"
            else:
                assert (slot is None or dimm.slot == slot) and (at is None or dimm.address == FIRST + at * BLOCK)
                there.append(dimm)
        assert bench.plugged == sorted((dimm.address, dimm.size) for dimm in there)
        assert len({dimm.slot for dimm in there}) == len(there) <= SLOTS
        assert all(gpa >= FIRST and gpa + size <= FIRST + 10 * BLOCK for gpa, size in bench.plugged)
    bench.banks.close()
    bench.memory.release()
