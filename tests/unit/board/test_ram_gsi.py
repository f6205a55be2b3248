"""RAM around its holes, and the GSI table."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import IrqchipRoute, KvmError, MsiRoute, address_of, constants, map_memory
from pyvmm.board import memslots as ram_module
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.gsi import GsiTable, kernel_pins
from pyvmm.board.layout import FIRST_MSI_GSI, HIGH_MEMORY, HOLE_END, HOLE_START, IOAPIC_PINS, LOW_RAM_END
from pyvmm.board.memslots import MemorySlots, Ram, check_reach, host_memory, pci_memory64, plug_window, ram_end
from pyvmm.bus import Bus, Nobody
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, GuestMemoryError, Region
from pyvmm.pci.decoder import AddressDecoder
from pyvmm.units import GIB, KIB, MIB, size_text

# RAM


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapping(buffer: memoryview) -> dict[str, str]:
    """What /proc/self/smaps says of the mapping that *buffer* is in."""
    at = address_of(buffer)
    found: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", line):
            found = {"name": head[3]} if int(head[1], 16) <= at < int(head[2], 16) else {}
        elif found:
            name, _, value = line.partition(":")
            found[name] = value.strip()
            if name == "VmFlags":
                return found
    raise AssertionError(f"no mapping at {at:#x}")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("size", "regions"),
    [
        (MIB, [(0, 640 * KIB), (HIGH_MEMORY, 256 * KIB)]),
        (128 * MIB, [(0, 640 * KIB), (HIGH_MEMORY, 128 * MIB - HIGH_MEMORY)]),
        (3 * GIB, [(0, 640 * KIB), (HIGH_MEMORY, HOLE_START - HIGH_MEMORY)]),
        (3 * GIB + 4096, [(0, 640 * KIB), (HIGH_MEMORY, HOLE_START - HIGH_MEMORY), (HOLE_END, 4096)]),
        (5 * GIB, [(0, 640 * KIB), (HIGH_MEMORY, HOLE_START - HIGH_MEMORY), (HOLE_END, 2 * GIB)]),
    ],
)
def test_regions(size: int, regions: list[tuple[int, int]], shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_module, "host_memory", lambda: 8 * GIB)
    before = open_files()
    ram = Ram(size, shared=shared)
    assert list(ram.memory.regions) == regions
    assert (ram.below_4g + ram.above_4g, ram.size) == (size, size)
    assert LOW_RAM_END == 640 * KIB
    for gpa, buffer, fd, fd_offset, _ in ram.regions:
        assert (address_of(buffer) - gpa) % (2 * MIB) == 0, "a huge page of the host is one of the guest"
        assert fd == ram.fd and (fd is not None) == shared
        assert (fd_offset - gpa) % (2 * MIB) == 0
        ram.memory.write(gpa + len(buffer) - 4, b"last")
        assert fd is None or os.pread(fd, 4, fd_offset + len(buffer) - 4) == b"last"
    assert ("memfd:pyvmm-ram" in mapping(ram.regions[-1].buffer)["name"]) == shared
    ram.close()
    assert open_files() == before


@pytest.mark.parametrize("shared", [False, True])
def test_huge_pages_are_asked_for(shared: bool) -> None:
    ram = Ram(8 * MIB, shared=shared)
    flags = mapping(ram.regions[1].buffer)["VmFlags"].split()
    assert "hg" in flags, "MADV_HUGEPAGE"
    assert "dc" in flags, "MADV_DONTFORK"
    ram.close()


def test_a_view_that_is_held_outlives_the_ram() -> None:
    ram = Ram(MIB)
    view = ram.memory.view(0x1000, 4)
    view[:] = b"kept"
    ram.close()
    assert bytes(view) == b"kept"


def test_more_than_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_module, "host_memory", lambda: 2 * GIB)
    with pytest.raises(
        UserError, match=r"MachineConfig\(memory=\d+\): this host has 2048 MiB of memory and swap: ask for less"
    ):
        Ram(2049 * MIB)
    Ram(2 * GIB).close()


@pytest.mark.parametrize(
    ("size", "most", "window"),
    [
        (MIB, GIB, (4 * GIB, 4 * GIB + 896 * MIB)),
        (512 * MIB, GIB, (4 * GIB, 4 * GIB + 512 * MIB)),
        (3 * GIB, 4 * GIB, (4 * GIB, 5 * GIB)),
        (4 * GIB + 4096, 8 * GIB, (5 * GIB + 128 * MIB, 9 * GIB)),
    ],
)
def test_where_memory_is_plugged_in(size: int, most: int, window: tuple[int, int]) -> None:
    """Whole blocks above all RAM, and 4 GiB."""
    assert plug_window(size, most) == window


@given(st.integers(MIB, 1 << 40), st.integers(0, 1 << 40), st.integers(33, 52))
def test_pci_memory_is_above_all_that_may_be_plugged_in(size: int, more: int, phys_bits: int) -> None:
    size, most = size & -4096, (size + more) & -4096
    start, end = plug_window(size, most)
    assert start % (128 * MIB) == 0 and end - start <= most - size and start >= ram_end(size)
    if end > 1 << phys_bits:
        with pytest.raises(UserError, match=f"has {phys_bits} physical address bits"):
            check_reach(size, phys_bits, most)
        return
    check_reach(size, phys_bits, most)
    span = pci_memory64(size, phys_bits, most)
    assert span is None or end <= span[0] < span[1] <= 1 << phys_bits


def test_host_memory_is_what_proc_says() -> None:
    kib = [line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "Total:" in line[:10]]
    assert host_memory() >> 10 in (int(kib[0]) + int(swap) for swap in [*kib[1:], "0"])


@pytest.mark.parametrize("step", ["ftruncate", "map_memory"])
def test_a_host_that_refuses(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os if step == "ftruncate" else ram_module, step, refuse)
    before = open_files()
    with pytest.raises(UserError, match=r"MachineConfig\(memory=1048576\): Cannot allocate memory: ask for less"):
        Ram(MIB, shared=True)
    assert open_files() == before


def test_an_address_space_that_is_full() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        map_memory(1 << 62, 2 * MIB)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        map_memory((1 << 64) - 4096, 2 * MIB)


def test_the_memory_goes_with_its_last_view() -> None:
    whole = map_memory(6 * MIB, 2 * MIB)
    at, part = address_of(whole), whole[4 * MIB :]
    assert at % (2 * MIB) == 0
    whole.release()
    part[0] = 1
    part.release()
    assert not any(line.startswith(f"{at:x}-") for line in Path("/proc/self/maps").read_text().splitlines())


def pool(path: Path, size: int, free: int, promised: int) -> None:
    """A pool of the host as sysfs shows it."""
    directory = path / f"hugepages-{size // KIB}kB"
    directory.mkdir()
    (directory / "free_hugepages").write_text(f"{free}\n")
    (directory / "resv_hugepages").write_text(f"{promised}\n")


def test_pages_of_a_pool_that_has_too_few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(ram_module, "map_memory", refuse)
    monkeypatch.setattr(ram_module, "POOLS", tmp_path)
    pool(tmp_path, 2 * MIB, 7, 3)
    with pytest.raises(
        UserError,
        match=r"memory=67108864, memory_hugetlb=2097152\): .* of 32 pages of 2M this host has 4 free: put",
    ):
        Ram(64 * MIB, hugetlb=2 * MIB)
    with pytest.raises(
        UserError,
        match=r"memory_hugetlb=1073741824\): this host's kernel has no pages of 1G: leave hugetlb away",
    ):
        Ram(GIB, hugetlb=GIB)


def test_more_pages_than_a_pool_can_have() -> None:
    """All memory of the host cannot be in its pool: the kernel itself refuses."""
    before = open_files()
    with pytest.raises(UserError, match=r"leave hugetlb away$"):
        Ram(host_memory() // (2 * MIB) * (2 * MIB), hugetlb=2 * MIB)
    assert open_files() == before


@pytest.mark.parametrize(
    ("memory", "hugetlb", "says"),
    [
        (64 * MIB, 4 * KIB, r"MachineConfig\(memory_hugetlb=4096\): the host's huge pages are of 2M or 1G"),
        (63 * MIB, 2 * MIB, r"MachineConfig\(memory=66060288, memory_hugetlb=2097152\): the size is no multiple of 2M"),
        (
            1536 * MIB,
            GIB,
            r"MachineConfig\(memory=1610612736, memory_hugetlb=1073741824\): the size is no multiple of 1G",
        ),
    ],
)
def test_pages_that_do_not_fit(memory: int, hugetlb: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MachineConfig(memory=memory, memory_hugetlb=hugetlb).check()


def test_a_kvm_that_refuses() -> None:
    class Refusing(FakeVm):
        def set_user_memory_region(
            self, slot: int, gpa: int, buffer: object, *, readonly: bool = False, log_dirty_pages: bool = False
        ) -> None:
            raise KvmError(errno.ENOMEM, "KVM_SET_USER_MEMORY_REGION")

    ram = Ram(2 * MIB)
    with pytest.raises(UserError, match="KVM refuses 0 MiB of guest RAM"):
        ram.memory.watch(MemorySlots(Refusing()))
    ram.close()


class Slots(FakeVm):
    """Keeps the slots as KVM would."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[int, tuple[int, int]] = {}

    def set_user_memory_region(
        self, slot: int, gpa: int, buffer: object, *, readonly: bool = False, log_dirty_pages: bool = False
    ) -> None:
        if buffer is None:
            del self.slots[slot]
        else:
            assert isinstance(buffer, memoryview) and slot not in self.slots
            self.slots[slot] = (gpa, len(buffer))


def test_ram_comes_and_goes_while_the_machine_runs() -> None:
    """KVM's slots and the PCI decoder follow; a slot that is free is the next region's."""
    vm, bus = Slots(), Bus("MMIO", 1 << 40)
    memory = GuestMemory([(0, memoryview(bytearray(MIB)))])
    memory.watch(MemorySlots(vm))
    decoder = AddressDecoder(bus, 1 << 40)
    memory.watch(decoder)
    claim = decoder.claim(Nobody())
    claim.place(2 * MIB, [(2 * MIB, 4 * MIB)])
    decoder.apply()
    memory.add(Region(3 * MIB, memoryview(bytearray(2 * MIB))))
    memory.add(Region(8 * MIB, memoryview(bytearray(MIB)), kind="video"))
    assert vm.slots == {0: (0, MIB), 1: (3 * MIB, 2 * MIB), 2: (8 * MIB, MIB)}
    assert claim.visible == ((2 * MIB, 3 * MIB),), "RAM is in front of it"
    memory.write(4 * MIB, b"there")
    with pytest.raises(GuestMemoryError):
        memory.view(8 * MIB, 1)  # which is no RAM
    assert memory.regions == ((0, MIB), (3 * MIB, 2 * MIB))
    memory.remove(3 * MIB)
    assert vm.slots == {0: (0, MIB), 2: (8 * MIB, MIB)}
    assert claim.visible == ((2 * MIB, 4 * MIB),)
    with pytest.raises(GuestMemoryError):
        memory.read(4 * MIB, 1)
    memory.add(Region(16 * MIB, memoryview(bytearray(MIB))))
    assert vm.slots[1] == (16 * MIB, MIB)
    with pytest.raises(ValueError, match="overlap at 0x1000000"):
        memory.add(Region(15 * MIB, memoryview(bytearray(2 * MIB))))
    with pytest.raises(ValueError, match="begins at 0x1000"):
        memory.remove(0x1000)


def test_a_region_that_one_listener_refuses_is_not_there() -> None:
    class Refuses:
        def added(self, region: Region) -> None:
            raise UserError("no")

        def removed(self, region: Region) -> None: ...

    vm, memory = Slots(), GuestMemory()
    memory.watch(MemorySlots(vm))
    memory.watch(Refuses())
    with pytest.raises(UserError):
        memory.add(Region(0, memoryview(bytearray(4096))))
    assert vm.slots == {} and memory.regions == ()


@pytest.mark.parametrize(
    ("phys_bits", "most"), [(32, 3 * GIB), (33, 7 * GIB), (36, 63 * GIB), (40, 1023 * GIB), (46, (64 << 40) - GIB)]
)
def test_ram_within_reach(phys_bits: int, most: int) -> None:
    check_reach(most, phys_bits)
    with pytest.raises(UserError, match=f"has {phys_bits} physical address bits: ask for at most {size_text(most)}"):
        check_reach(most + 4096, phys_bits)


# GSIs


class RoutingVm:
    """Takes the routing tables."""

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self.tables: list[list[IrqchipRoute | MsiRoute]] = []

    def check_extension(self, name: str) -> int:
        assert name == "KVM_CAP_IRQ_ROUTING"
        return self.limit

    def set_gsi_routing(self, routes: list[IrqchipRoute | MsiRoute]) -> None:
        self.tables.append(list(routes))


def test_the_wiring_of_a_pc() -> None:
    pins = kernel_pins()
    pic = {r.gsi: (r.irqchip, r.pin) for r in pins if r.irqchip != constants.KVM_IRQCHIP_IOAPIC}
    ioapic = {r.gsi: r.pin for r in pins if r.irqchip == constants.KVM_IRQCHIP_IOAPIC}
    assert pic == {
        n: (constants.KVM_IRQCHIP_PIC_MASTER if n < 8 else constants.KVM_IRQCHIP_PIC_SLAVE, n % 8)
        for n in range(16)
        if n != 2
    }
    assert ioapic == {0: 2, **{n: n for n in range(24) if n not in (0, 2)}}


def test_messages_are_added_to_the_pins() -> None:
    vm, pins = RoutingVm(), kernel_pins()
    table = GsiTable(vm, pins)  # type: ignore[arg-type]
    assert vm.tables == [pins]
    gsi = table.allocate()
    assert gsi == FIRST_MSI_GSI
    table.set_message(gsi, 0xFEE00000, 0x41)
    table.set_message(gsi, 0xFEE00000, 0x41)
    assert vm.tables[1:] == [[*pins, MsiRoute(gsi, 0xFEE00000, 0x41)]], "once: nothing changed the second time"
    table.set_message(gsi, 0xFEE01000, 0x42)
    assert vm.tables[-1] == [*pins, MsiRoute(gsi, 0xFEE01000, 0x42)]
    before = len(vm.tables)
    table.free(gsi)
    assert len(vm.tables) == before, "nobody sends it: it goes with the next change"
    assert table.allocate() == gsi
    table.set_messages([(gsi + 1, 0xFEE00000, 0x43), (gsi + 2, 0xFEE00000, 0x44)])
    expected = [*pins, MsiRoute(gsi + 1, 0xFEE00000, 0x43), MsiRoute(gsi + 2, 0xFEE00000, 0x44)]
    assert vm.tables[before:] == [expected], "many by one change"


@pytest.mark.parametrize("pins", [[], kernel_pins()], ids=["split", "kernel"])
def test_a_full_table(pins: list[IrqchipRoute]) -> None:
    """KVM takes so many routes and not one more; with a split irqchip the IOAPIC's pins have messages too."""
    vm = RoutingVm(100)
    table = GsiTable(vm, pins)  # type: ignore[arg-type]
    gsis = [gsi for _ in range(100 - max(len(pins), IOAPIC_PINS)) if (gsi := table.allocate()) is not None]
    assert len(gsis) == 100 - max(len(pins), IOAPIC_PINS) and table.allocate() is None
    for gsi in [*gsis, *(range(IOAPIC_PINS) if not pins else ())]:
        table.set_message(gsi, 0xFEE00000, gsi)
    assert len(vm.tables[-1]) == 100
    table.free(gsis[-1])
    assert table.allocate() == gsis[-1]


@given(st.lists(st.tuples(st.sampled_from(["allocate", "free", "set"]), st.integers(0, 5), st.integers(0, 3))))
def test_the_kernel_has_what_was_set_last(actions: list[tuple[str, int, int]]) -> None:
    vm = RoutingVm()
    table = GsiTable(vm, kernel_pins()[:1])  # type: ignore[arg-type]
    live: dict[int, int | None] = {}
    for action, index, data in actions:
        if action == "allocate":
            gsi = table.allocate()
            assert gsi is not None and gsi not in live
            live[gsi] = None
        elif live:
            gsi = sorted(live)[index % len(live)]
            if action == "free":
                table.free(gsi)
                del live[gsi]
            else:
                table.set_message(gsi, 0xFEE00000, data)
                live[gsi] = data
        expected = {gsi: data for gsi, data in live.items() if data is not None}
        there = {r.gsi: r.data for r in vm.tables[-1] if isinstance(r, MsiRoute)}
        assert {gsi: data for gsi, data in there.items() if live.get(gsi) is not None} == expected
