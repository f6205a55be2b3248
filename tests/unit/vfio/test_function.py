"""A device of the host in a guest's PCI: BARs that move, interrupts, power states and resets, on a model of VFIO."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvm_cffi.vfio import VfioRegion
from pyvmm import state
from pyvmm.errors import UserError
from pyvmm.pci.msi import FakeMsiIrq, FakeMsiRouter
from pyvmm.pci.regs import PCI_COMMAND
from pyvmm.pci.root_port import RootPort
from pyvmm.state import StateError
from pyvmm.testing.pci import Board, Config
from pyvmm.trace import OFF, Channel
from pyvmm.vfio.bar import mappable
from pyvmm.vfio.config import HostConfigSpace, capabilities
from pyvmm.vfio.fake import FakeHostDevice, FakePassthrough
from pyvmm.vfio.function import VfioPci

PM, MSI, MSIX, EXP = 0x40, 0x50, 0x70, 0x80
TABLE, PBA, VECTORS = 0x2000, 0x3010, 10
BAR = 0xC0000000
INTX_INDEX, MSI_INDEX, MSIX_INDEX = 0, 1, 2
FLR = 1 << 28
MASKALL, ENABLE = 0x4000, 0x8000


def nic(vectors: int = VECTORS) -> FakeHostDevice:
    """A 64-bit BAR 0 of 32 KiB with MSI-X inside, BAR 2 of 256 bytes, BAR 4 of 32 ports; PM, MSI, MSI-X, FLR."""
    config = bytearray(256)

    def put(offset: int, size: int, value: int) -> None:
        config[offset : offset + size] = value.to_bytes(size, "little")

    put(0x00, 4, 0x10D38086)
    put(0x06, 2, 0x0010)
    put(0x08, 4, 0x02000003)
    put(0x0E, 1, 0x80)
    put(0x10, 4, 0x0000000C)
    put(0x20, 4, 0x00000001)
    put(0x2C, 4, 0x00011AF4)
    put(0x34, 1, PM)
    put(0x3D, 1, 1)
    put(PM, 4, 0x00030001 | MSI << 8)
    put(MSI, 4, 0x0084 << 16 | 0x0005 | MSIX << 8)
    put(MSIX, 4, (vectors - 1) << 16 | 0x0011 | EXP << 8)
    put(MSIX + 4, 4, TABLE)
    put(MSIX + 8, 4, PBA)
    put(EXP, 4, 0x00020010)
    put(EXP + 4, 4, FLR)
    bars = {0: (0x8000, ((0, 0x8000),)), 2: (0x100, ((0, 0x100),)), 4: (0x20, ())}
    return FakeHostDevice(config, bars, (1, 4, vectors), pm=PM)


class Router(FakeMsiRouter):
    """Its vectors have eventfds, as KVM's have."""

    def allocate(self) -> FakeMsiIrq:
        irq = super().allocate()
        irq.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return irq


class Given:
    """The device in slot 3 of a board."""

    def __init__(
        self,
        device: FakeHostDevice | None = None,
        slot: int = 3,
        wiring: Channel = OFF,
        later: bool = False,
        rom: Path | None = None,
        p2p: bool = False,
    ) -> None:
        self.board = Board()
        self.board.host.msi = Router()
        self.device = nic() if device is None else device
        self.passthrough = FakePassthrough(self.device, later)
        self.function = VfioPci("0000:01:00.0", rom=rom, p2p=p2p, passthrough=self.passthrough, wiring=wiring)
        self.device.reachable = lambda: bool(self.board.windows.at)
        self.board.host.root.add(self.function, slot)
        self.config: Config = self.board.ecam(0, slot)

    @property
    def windows(self) -> list[tuple[int, int]]:
        return sorted((start, start + len(buffer)) for start, buffer in self.board.windows.at.items())

    def place(self) -> None:
        self.config.write(0x10, 4, BAR)
        self.config.write(0x14, 4, 0)
        self.config.write(0x18, 4, BAR + 0x100000)
        self.config.write(0x20, 4, 0xC000)
        self.config.write(PCI_COMMAND, 2, 7)

    def entry(self, vector: int, masked: bool, address: int = 0xFEE00000) -> None:
        at = BAR + TABLE + 16 * vector
        write = self.board.memory_bus.write
        write(at, 4, address)
        write(at + 4, 4, 0)
        write(at + 8, 4, 0x40 + vector)
        write(at + 12, 4, int(masked))

    def on(self) -> tuple[int, int] | None:
        """Which interrupt of the device signals, and how many vectors."""
        return None if self.device.enabled is None else (self.device.enabled[0], len(self.device.enabled[1]))

    def close(self) -> None:
        self.function.close()
        for irq in self.board.host.msi.irqs:  # type: ignore[attr-defined]
            os.close(irq.fd)


@pytest.fixture
def nic_given() -> Iterator[Given]:
    there = Given()
    yield there
    there.close()
    assert there.device.closed and there.windows == []


def test_it_is_who_it_is(nic_given: Given) -> None:
    config = nic_given.config
    assert config.read(0, 4) == 0x10D38086
    assert config.read(8, 4) == 0x02000003
    assert config.read(0x0E, 1) == 0, "of the host's functions the guest has this one"
    assert config.read(0x2C, 4) == 0x00011AF4
    assert config.size_bar(0) == (0xC, 0x8000) and config.size_bar(2) == (0, 0x100) and config.size_bar(4) == (1, 0x20)


def test_all_around_the_msix_table_is_reached_without_an_exit(nic_given: Given) -> None:
    nic_given.place()
    assert nic_given.windows == [(BAR, BAR + 0x2000), (BAR + 0x4000, BAR + 0x8000)]
    bus, memory = nic_given.board.memory_bus, nic_given.device.memory
    nic_given.board.windows.at[BAR][0x10] = 5
    assert memory[0][0x10] == 5, "it is the device"
    bus.write(BAR + 0x3800, 4, 0x12345678)
    assert memory[0][0x3800:0x3804] == b"\x78\x56\x34\x12", "beside the pending bits it traps, and reaches the device"
    bus.write(BAR + 0x100004, 2, 0xABCD)
    assert bus.read(BAR + 0x100004, 2) == 0xABCD and memory[2][4:6] == b"\xcd\xab"
    nic_given.board.io_bus.write(0xC010, 1, 7)
    assert memory[4][0x10] == 7
    nic_given.config.write(0x10, 4, BAR + 0x200000)
    assert nic_given.windows == [(BAR + 0x200000, BAR + 0x202000), (BAR + 0x204000, BAR + 0x208000)]
    nic_given.config.write(PCI_COMMAND, 2, 5)
    assert nic_given.windows == [] and not nic_given.device.decodes
    assert bus.read(BAR + 0x200000, 4) == 0xFFFFFFFF


def test_a_bar_over_ram_or_another_shows_where_nothing_else_is(nic_given: Given) -> None:
    nic_given.place()
    nic_given.config.write(0x10, 4, (16 << 20) - 0x8000)  # the end of RAM
    assert nic_given.windows == []
    nic_given.config.write(0x18, 4, BAR + 0x1000)
    nic_given.config.write(0x10, 4, BAR)
    assert nic_given.windows == [(BAR, BAR + 0x2000), (BAR + 0x4000, BAR + 0x8000)], "BAR 0 came first"


def test_sparse_regions_and_small_ones() -> None:
    sparse = VfioRegion(0, 0x10000, 0, mappable=((0, 0x3000), (0x8000, 0x8000)))
    assert mappable(sparse, [(0x1008, 0x1010), (0x8FFF, 0x9001)]) == [(0, 0x1000), (0x2000, 0x3000), (0xA000, 0x10000)]
    assert mappable(VfioRegion(0, 0x800, 0, mappable=((0, 0x800),)), []) == []
    assert mappable(VfioRegion(0, 0x1000, 0), []) == []


@given(
    st.lists(st.tuples(st.integers(0, 0x40), st.integers(1, 0x40)), max_size=3),
    st.lists(st.tuples(st.integers(0, 0x3FFFF), st.integers(1, 0x4000)), max_size=3),
)
def test_no_trap_is_ever_mapped(pieces: list[tuple[int, int]], traps: list[tuple[int, int]]) -> None:
    region = VfioRegion(0, 0x100000, 0, mappable=tuple((start << 12, size << 12) for start, size in pieces))
    for start, end in mappable(region, [(low, low + size) for low, size in traps]):
        assert start % 4096 == end % 4096 == 0 and start < end
        assert not any(start < low + size and low < end for low, size in traps)
        assert any(low <= start and end <= low + size for low, size in region.mappable)


def test_msix_as_linux_programs_it(nic_given: Given) -> None:
    nic_given.place()
    assert nic_given.on() == (INTX_INDEX, 1)
    nic_given.config.write(MSIX + 2, 2, ENABLE | MASKALL)
    assert nic_given.on() is None, "INTx goes first"
    for vector in range(VECTORS):
        nic_given.board.memory_bus.write(BAR + TABLE + 16 * vector + 12, 4, 1)
    for vector in range(3):
        nic_given.entry(vector, masked=True)
    nic_given.config.write(MSIX + 2, 2, ENABLE)
    assert nic_given.on() == (MSIX_INDEX, 3), "all that the guest uses, at once"
    nic_given.entry(1, masked=False)
    irqs = nic_given.board.host.msi.irqs  # type: ignore[attr-defined]
    assert nic_given.on() == (MSIX_INDEX, 3)
    vector = next(irq for irq in irqs if not irq.masked)
    assert vector.message == (0xFEE00000, 0x41)
    nic_given.device.fire(1)
    assert os.eventfd_read(vector.fd) == 1, "which KVM would read"
    nic_given.entry(7, masked=False)
    assert nic_given.on() == (MSIX_INDEX, 8)
    nic_given.config.write(MSIX + 2, 2, 0)
    assert nic_given.on() == (INTX_INDEX, 1)
    assert not any(irq.fd in (nic_given.device.enabled or (0, []))[1] for irq in irqs)


def test_what_comes_while_masked_is_pending(nic_given: Given) -> None:
    nic_given.place()
    for vector in range(4):
        nic_given.entry(vector, masked=True)
    nic_given.config.write(MSIX + 2, 2, ENABLE)
    read = nic_given.board.memory_bus.read
    assert read(BAR + PBA, 4) == 0
    nic_given.device.fire(2)
    nic_given.device.fire(2)
    assert read(BAR + PBA, 8) == 0b100 and read(BAR + PBA, 1) == 0b100
    nic_given.board.memory_bus.write(BAR + PBA, 4, 0)
    assert read(BAR + PBA, 4) == 0b100, "read-only"
    nic_given.config.write(MSIX + 2, 2, 0)
    nic_given.config.write(MSIX + 2, 2, ENABLE)
    assert read(BAR + PBA, 4) == 0, "off, it forgets"


def test_msi(nic_given: Given) -> None:
    nic_given.place()
    config = nic_given.config
    config.write(MSI + 4, 4, 0xFEE01000)
    config.write(MSI + 12, 2, 0x50)
    config.write(MSI + 2, 2, 0x21)
    assert nic_given.on() == (MSI_INDEX, 4)
    messages = [irq.message for irq in nic_given.board.host.msi.irqs if not irq.masked]  # type: ignore[attr-defined]
    assert messages == [(0xFEE01000, 0x50 + n) for n in range(4)]
    config.write(MSI + 2, 2, 0x01)
    assert nic_given.on() == (MSI_INDEX, 1)
    config.write(MSI + 2, 2, 0)
    assert nic_given.on() == (INTX_INDEX, 1)


def test_watched_a_message_goes_by_the_loop() -> None:
    told: list[str] = []
    there = Given(wiring=Channel("vfio", lambda ns, channel, message: told.append(message)))
    there.place()
    there.entry(0, masked=True)
    there.entry(1, masked=False)
    there.config.write(MSIX + 2, 2, ENABLE)
    there.device.fire(1)
    there.device.fire(0)
    there.passthrough.run()
    assert there.board.host.msi.sent == [(0xFEE00000, 0x41)]  # type: ignore[attr-defined]
    assert there.board.memory_bus.read(BAR + PBA, 4) == 1
    assert "0000:01:00.0: MSI-X 1: 0x41 to 0xfee00000, by the loop" in told
    there.entry(0, masked=False)
    assert there.board.host.msi.sent[1:] == [(0xFEE00000, 0x40)]  # type: ignore[attr-defined]
    there.close()
    assert there.passthrough.watched == {}


def test_fewer_vectors_than_asked_for(nic_given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    set_triggers = nic_given.device.set_triggers
    monkeypatch.setattr(nic_given.device, "set_triggers", lambda i, fds: 2 if len(fds) > 2 else set_triggers(i, fds))
    nic_given.place()
    nic_given.entry(5, masked=False)
    nic_given.config.write(MSIX + 2, 2, ENABLE)
    assert nic_given.on() == (MSIX_INDEX, 2)


def test_intx_is_a_level(nic_given: Given) -> None:
    nic_given.place()
    line, pin = nic_given.passthrough.lines[-1], nic_given.board.lines[3]  # INTA of slot 3 is PIRQD
    nic_given.device.set_intx(True)
    line.signalled()
    assert pin.level and nic_given.device.intx_masked
    line.eoi()
    assert not pin.level, "until it signals again, which it does while it is up"
    line.signalled()
    assert pin.level
    nic_given.device.set_intx(False)
    line.eoi()
    line.signalled()
    assert not pin.level and not nic_given.device.intx_masked
    assert nic_given.board.host.pirq_of(nic_given.function, 1) == 3


def test_behind_a_port_the_pin_is_the_ports() -> None:
    board = Board()
    port = RootPort(0)
    board.host.root.add(port, 5)
    function = VfioPci("0000:01:00.0", passthrough=FakePassthrough(nic()))
    port.child.add(function, 0)
    assert board.host.pirq_of(function, 1) == 1
    assert board.host.pirq_of(function, 4) == 0
    function.close()


def test_flr_and_the_machines_reset_give_a_clean_device(nic_given: Given) -> None:
    nic_given.place()
    nic_given.entry(0, masked=False)
    nic_given.config.write(MSIX + 2, 2, ENABLE)
    nic_given.device.fire(0)
    nic_given.config.write(EXP + 8, 2, 0x8000)
    assert nic_given.device.resets == 1
    assert nic_given.config.read(0x10, 4) == 0xC and nic_given.config.read(PCI_COMMAND, 2) == 0
    assert nic_given.windows == [] and nic_given.on() == (INTX_INDEX, 1)
    nic_given.place()
    assert nic_given.board.memory_bus.read(BAR + PBA, 4) == 0
    nic_given.board.host.reset()
    assert nic_given.device.resets == 2 and nic_given.windows == []
    nic_given.place()
    assert nic_given.windows


def test_d3_hides_what_does_not_decode(nic_given: Given) -> None:
    nic_given.place()
    nic_given.config.write(PM + 4, 2, 3)
    assert nic_given.windows == []
    assert nic_given.board.memory_bus.read(BAR, 4) == 0xFFFFFFFF
    assert nic_given.config.read(PCI_COMMAND, 2) == 7 and nic_given.config.read(PM + 4, 2) == 3
    nic_given.config.write(PM + 4, 2, 0)
    assert nic_given.windows and nic_given.device.decodes


def test_the_devices_bus_mastering_is_the_guests_and_the_bridges(nic_given: Given) -> None:
    nic_given.place()
    assert nic_given.device.config[PCI_COMMAND] == 7
    nic_given.config.write(PCI_COMMAND, 2, 3)
    assert nic_given.device.config[PCI_COMMAND] == 3


def test_a_snapshot_is_refused_and_unplugging_gives_it_back(nic_given: Given) -> None:
    with pytest.raises(StateError, match=r"0000:01:00\.0 is a device of the host"):
        state.save(nic_given.function)
    nic_given.place()
    nic_given.board.host.root.remove(nic_given.function)
    assert nic_given.device.closed and nic_given.windows == []


CONFIG_WRITES = st.tuples(
    st.just("config"),
    st.one_of(
        st.sampled_from([0x04, 0x10, 0x14, 0x18, 0x20, PM + 4, MSI + 2, MSIX + 2, EXP + 8, EXP + 9]),
        st.integers(0, 255),
    ),
    st.sampled_from([1, 2, 4]),
    st.one_of(
        st.sampled_from([0, 3, 7, BAR, BAR + 0x1000, 0xC000, ENABLE, ENABLE | MASKALL, 0xFFFFFFFF, 0x21]),
        st.integers(0, 0xFFFFFFFF),
    ),
)
TABLE_WRITES = st.tuples(
    st.just("memory"),
    st.integers(BAR + TABLE - 8, BAR + 0x4000),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 1 << 64),
)
EVENTS = st.tuples(
    st.sampled_from(["fire", "intx", "eoi", "reset", "run", "watch"]), st.integers(0, 12), st.just(1), st.just(0)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(CONFIG_WRITES, TABLE_WRITES, EVENTS), max_size=40), st.booleans())
def test_a_hostile_guest(steps: list[tuple[str, int, int, int]], later: bool) -> None:
    """Nothing raises; the model fails where a guest reaches a BAR that does not decode, or two interrupts are on."""
    wiring = Channel("vfio", lambda ns, name, message: None, enabled=False)
    there = Given(nic(vectors=100), wiring=wiring, later=later)
    try:
        there.place()
        for what, where, size, value in steps:
            value &= (1 << 8 * size) - 1
            match what:
                case "config":
                    there.config.write(where, size, value)
                    there.config.read(where, size)
                case "memory":
                    there.board.memory_bus.write(where, size, value)
                    there.board.memory_bus.read(where, size)
                case "fire":
                    there.device.fire(where)
                case "intx":
                    there.device.set_intx(bool(where & 1))
                    there.passthrough.lines[-1].signalled()
                case "eoi" if not there.passthrough.lines[-1].closed:
                    there.passthrough.lines[-1].eoi()
                case "reset":
                    there.board.host.reset()
                case "run":
                    there.passthrough.run()
                case "watch":
                    wiring.enabled = bool(where & 1)
                    there.passthrough.trace_changed()
            assert not there.windows or there.device.decodes
            command = there.function.command
            if later and there.config.read(0, 4) == 0xFFFFFFFF:
                continue  # it is being reset
            assert there.device.config[PCI_COMMAND] & 7 == command & 7, "the device follows the guest"
    finally:
        there.close()


# What takes the host long


def test_a_reset_is_done_elsewhere_and_the_function_is_not_ready_meanwhile() -> None:
    there = Given(later=True)
    there.place()
    there.entry(0, masked=False)
    there.config.write(MSIX + 2, 2, ENABLE)
    there.config.write(EXP + 8, 2, 0x8000)
    assert there.device.resets == 0 and there.windows == [] and there.on() is None
    assert there.config.read(0, 4) == 0xFFFFFFFF
    there.config.write(0x10, 4, BAR)
    there.config.write(PCI_COMMAND, 2, 7)
    there.config.write(EXP + 8, 2, 0x8000)
    there.passthrough.run()
    assert there.device.resets == 1 and there.config.read(0, 4) == 0x10D38086
    assert there.config.read(0x10, 4) == 0xC and there.on() == (INTX_INDEX, 1)
    there.close()


def test_many_vectors_are_enabled_elsewhere_and_none_is_lost() -> None:
    there = Given(nic(vectors=200), later=True)
    there.place()
    there.entry(150, masked=False)
    there.config.write(MSIX + 2, 2, ENABLE)
    assert there.on() == (INTX_INDEX, 1)
    there.entry(180, masked=False)
    there.passthrough.run()
    assert there.on() == (MSIX_INDEX, 181), "what the guest has asked for meanwhile follows"
    irqs = there.board.host.msi.irqs  # type: ignore[attr-defined]
    assert os.eventfd_read(irqs[4 + 180].fd) >= 1, "it may have signalled before it was on: one for each"
    there.config.write(MSIX + 2, 2, 0)
    there.passthrough.run()
    assert there.on() == (INTX_INDEX, 1)
    there.close()


def test_a_device_without_a_reset_of_its_own_is_reset_with_its_bus() -> None:
    there = Given()
    there.device.can_reset = False
    there.place()
    there.board.host.reset()
    assert (there.passthrough.hot_resets, there.device.resets) == (0, 0), "its bus has others"
    there.passthrough.can_hot_reset = True
    there.board.host.reset()
    assert (there.passthrough.hot_resets, there.device.resets) == (1, 1)
    there.close()


# What the host has to say


def test_the_host_wants_it_back() -> None:
    device = nic()
    device.heard = {}
    there = Given(device)
    there.place()
    os.eventfd_write(device.heard[4], 1)
    there.passthrough.run()
    assert there.device.closed and there.windows == [] and device.heard == {} and there.passthrough.watched == {}
    assert len(there.passthrough.said) == 1 and "0000:01:00.0: this host wants it back" in there.passthrough.said[0]
    assert there.config.read(0, 4) == 0xFFFFFFFF
    there.config.write(PCI_COMMAND, 2, 7)
    there.config.write(EXP + 8, 2, 0x8000)
    there.board.host.reset()
    there.close()


def test_an_error_is_a_line() -> None:
    device = nic()
    device.heard = {}
    there = Given(device)
    os.eventfd_write(device.heard[3], 1)
    there.passthrough.run()
    assert there.passthrough.said == ["device 0000:01:00.0: an error of its bus (AER) that is not corrected: see dmesg"]
    there.close()


# The trace, at any time


def test_watched_from_the_middle_on() -> None:
    lines: list[str] = []
    wiring = Channel("vfio", lambda ns, name, message: lines.append(message))
    wiring.enabled = False
    there = Given(wiring=wiring)
    there.place()
    there.entry(0, masked=True)
    there.entry(1, masked=False)
    there.config.write(MSIX + 2, 2, ENABLE)
    there.device.fire(0)
    wiring.enabled = True
    there.passthrough.trace_changed()
    assert there.on() == (MSIX_INDEX, 2) and len(there.passthrough.watched) == 2
    assert there.board.memory_bus.read(BAR + PBA, 4) == 1, "what waited before waits still"
    there.device.fire(1)
    there.passthrough.run()
    assert any("MSI-X 1" in line and "by the loop" in line for line in lines)
    sent = len(there.board.host.msi.sent)  # type: ignore[attr-defined]
    wiring.enabled = False
    there.passthrough.trace_changed()
    assert there.passthrough.watched == {} and there.on() == (MSIX_INDEX, 2)
    there.entry(0, masked=False)
    assert len(there.board.host.msi.sent) == sent + 1  # type: ignore[attr-defined]
    there.close()


# An expansion ROM, and peers


def test_a_file_as_expansion_rom(tmp_path: Path) -> None:
    file = tmp_path / "rom"
    file.write_bytes(b"\x55\xaa\x08" + bytes(range(256)) * 10)
    there = Given(rom=file)
    there.config.write(0x30, 4, 0xFFFFFFFF)
    assert there.config.read(0x30, 4) == 0xFFFFF001, "4 KiB"
    there.config.write(0x30, 4, BAR + 0x300000)
    there.config.write(PCI_COMMAND, 2, 2)
    read = there.board.memory_bus.read
    assert read(BAR + 0x300000, 2) == 0xFFFF, "its own bit lets it decode"
    there.config.write(0x30, 4, BAR + 0x300001)
    assert read(BAR + 0x300000, 4) == 0x0008AA55 and read(BAR + 0x300FFC, 4) == 0xFFFFFFFF
    there.board.memory_bus.write(BAR + 0x300000, 4, 0)
    assert read(BAR + 0x300000, 2) == 0xAA55
    there.board.host.reset()
    assert there.config.read(0x30, 4) == 0
    there.close()


@pytest.mark.parametrize(
    ("data", "line"),
    [(None, "No such file"), (b"", "no expansion ROM"), (b"\x7fELF", "55 AA"), (b"\x55\xaa" * (9 << 20), "16 MiB")],
)
def test_no_expansion_rom(tmp_path: Path, data: bytes | None, line: str) -> None:
    file = tmp_path / "rom"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(UserError, match=line):
        Given(rom=file)


def test_peers_reach_what_is_mapped() -> None:
    there = Given(p2p=True)
    assert [len(memory) for memory in there.passthrough.peers] == [0x2000, 0x4000]
    there.close()
    other = Given()
    assert other.passthrough.peers == []
    other.close()


# What fails


def no_config(device: FakeHostDevice) -> None:
    device.region = lambda index: None  # type: ignore[method-assign]


def unread(device: FakeHostDevice) -> None:
    def fails(region: VfioRegion, offset: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    device.read = fails  # type: ignore[method-assign]


def gone(device: FakeHostDevice) -> None:
    device.config[:] = b"\xff" * len(device.config)


def bridge(device: FakeHostDevice) -> None:
    device.config[0x0E] = 1


def fifth_pin(device: FakeHostDevice) -> None:
    device.config[0x3D] = 5


def ports(device: FakeHostDevice) -> None:
    device.memory[4] = bytearray(0x400)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (no_config, "device 0000:01:00.0 does not answer: see dmesg"),
        (unread, "device 0000:01:00.0: .*Input/output error: see dmesg"),
        (gone, "device 0000:01:00.0 does not answer: see dmesg"),
        (bridge, "device 0000:01:00.0 is a bridge"),
        (fifth_pin, "interrupt pin 5"),
        (ports, "an I/O BAR has 4 to 256 ports, not 1024"),
    ],
)
def test_one_that_a_guest_cannot_have_is_given_back(fault: Callable[[FakeHostDevice], None], line: str) -> None:
    device = nic()
    fault(device)
    with pytest.raises((UserError, ValueError), match=line):
        Given(device)
    assert device.closed


def test_no_descriptor_is_left_for_what_the_host_has_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FakePassthrough, call: Callable[[], None]) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(FakePassthrough, "watch", full)
    device = nic()
    device.heard = {}
    there = Given(device)
    there.place()
    assert there.windows and there.on() == (INTX_INDEX, 1)
    there.close()


def test_interrupts_that_get_nowhere_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    there = Given()
    there.place()
    assert there.passthrough.said == []
    irq = there.board.host.msi.irqs[4 + 1]  # type: ignore[attr-defined]
    fd, irq.fd = irq.fd, None
    monkeypatch.setattr(there.passthrough, "intx", full)
    there.entry(1, masked=False)
    for _ in range(3):
        there.config.write(MSIX + 2, 2, ENABLE)
        assert there.device.enabled is not None and there.device.enabled[1][1] is None
        there.config.write(MSIX + 2, 2, 0)
        assert there.on() is None
    (line,) = there.passthrough.said
    assert line.startswith("device 0000:01:00.0: the guest does not hear all of its MSI-X") and "ulimit -n" in line
    irq.fd = fd
    there.close()


def test_one_that_sleeps_and_has_no_reset_is_woken(nic_given: Given) -> None:
    """A guest may put it into D3hot, and reset the machine: what it reaches then must decode."""
    nic_given.device.can_reset = False
    nic_given.place()
    nic_given.config.write(PM + 4, 2, 3)
    nic_given.board.host.reset()
    assert nic_given.config.read(PM + 4, 1) & 3 == 0
    nic_given.place()
    assert nic_given.windows and nic_given.device.decodes


def test_one_that_does_not_wake_does_not_decode(nic_given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    nic_given.device.can_reset = False
    nic_given.place()
    nic_given.config.write(PM + 4, 2, 3)
    write = nic_given.device.write

    def sleeps(region: VfioRegion, offset: int, data: bytes) -> None:
        if not offset <= PM + 4 < offset + len(data):
            write(region, offset, data)

    monkeypatch.setattr(nic_given.device, "write", sleeps)
    nic_given.board.host.reset()
    nic_given.place()
    assert nic_given.windows == []
    monkeypatch.undo()
    nic_given.config.write(PM + 4, 2, 0)
    assert nic_given.windows and nic_given.device.decodes


@pytest.mark.parametrize("vectors", [VECTORS, 200])
def test_unplugged_it_lets_go_of_the_eventfds_before_they_are_closed(
    vectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the number of one next must not be signalled, nor read."""
    there = Given(nic(vectors), later=True)
    there.place()
    there.entry(vectors - 1, masked=False)
    there.config.write(MSIX + 2, 2, ENABLE)
    there.passthrough.run()
    assert there.on() == (MSIX_INDEX, vectors)
    monkeypatch.setattr(FakeMsiIrq, "close", lambda irq: closed.append(there.device.enabled))
    closed: list[object] = []
    there.board.host.root.remove(there.function)
    assert len(closed) == vectors + 4 and set(closed) == {None}
    assert there.device.closed and there.device.resets == 0, "the kernel does that as it is closed"
    there.passthrough.trace_changed()
    assert there.passthrough._trace_watchers == [], "nothing of it is kept"
    there.close()


def test_a_reset_that_ends_after_the_device_was_given_back(nic_given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host that did not answer in time."""

    def impatient() -> None:
        raise UserError("vfio does not come to rest within 10 s: its host does not answer")

    passthrough = nic_given.passthrough
    passthrough.later = True
    nic_given.place()
    nic_given.board.host.reset()
    monkeypatch.setattr(passthrough, "drain", impatient)
    lines = len(passthrough.lines)
    nic_given.function.close()
    monkeypatch.undo()
    monkeypatch.setattr(nic_given.device, "reset", lambda: None)
    passthrough.run()
    assert len(passthrough.lines) == lines and nic_given.on() is None


# Capabilities, however they are


def test_the_pending_bits_of_msi() -> None:
    device = nic()
    device.config[MSI + 3] |= 1  # masks for each vector
    device.config[MSIX : MSIX + 12] = bytes(12)
    device.config[MSI + 1] = 0
    there = Given(device)
    there.place()
    config = there.config
    config.write(MSI + 4, 4, 0xFEE01000)
    config.write(MSI + 12, 2, 0x50)
    config.write(MSI + 16, 4, 0b0110)
    config.write(MSI + 2, 2, 0x21)
    assert there.on() == (MSI_INDEX, 4) and config.read(MSI + 20, 4) == 0
    there.device.fire(1)
    there.device.fire(2)
    assert config.read(MSI + 20, 4) == 0b0110 and config.read(MSI + 20, 1) == 0b0110
    assert config.read(MSI + 16, 4) == 0b0110
    config.write(MSI + 2, 2, 0)
    config.write(MSI + 2, 2, 0x21)
    assert config.read(MSI + 20, 4) == 0, "off, it forgets"
    there.close()


def test_a_reset_that_the_device_cannot_do_is_not_asked_for(nic_given: Given) -> None:
    nic_given.place()
    nic_given.device.config[EXP + 7] = 0
    nic_given.config.write(EXP + 8, 2, 0x8000)
    assert nic_given.device.resets == 0 and nic_given.windows


@pytest.mark.parametrize(("able", "resets"), [(0x03, 1), (0x01, 0)])
def test_advanced_features(able: int, resets: int) -> None:
    device = nic()
    device.config[EXP : EXP + 6] = bytes((0x13, 0, 6, able, 0, 0))
    there = Given(device)
    there.place()
    there.config.write(EXP + 4, 1, 1)
    assert device.resets == resets
    there.close()


class SlowVpd(FakeHostDevice):
    """Turns bit 15 of the address over once it has read."""

    at = 0x40

    def write(self, region: VfioRegion, offset: int, data: bytes) -> None:
        super().write(region, offset, data)
        if region.index == 7 and offset <= self.at + 3 < offset + len(data):
            self.config[self.at + 4 : self.at + 8] = b"VPD!"
            self.config[self.at + 3] ^= 0x80


def test_vital_product_data_are_read_by_another_thread() -> None:
    image = nic().config
    image[PM : PM + 8] = bytes((3, MSI, 0, 0x80, 1, 2, 3, 4))
    there = Given(SlowVpd(image, {}, (1, 4, VECTORS)), later=True)
    config = there.config
    assert config.read(PM + 2, 2) == 0x8000
    before = len(there.device.log)
    config.write(PM + 2, 2, 0x0010)
    assert there.device.log[before:] == [], "the guest does not wait"
    assert config.read(PM + 3, 1) == 0 and config.read(PM, 4) >> 31 == 0, "nor is it done"
    config.write(PM + 2, 2, 0x0020)
    config.write(PM + 4, 4, 0x55555555)
    config.write(MSI + 2, 2, 1)
    assert there.on() == (INTX_INDEX, 1)
    there.passthrough.run()
    assert config.read(PM + 2, 2) == 0x8010 and config.read(PM + 4, 4) == int.from_bytes(b"VPD!", "little")
    assert there.on() == (MSI_INDEX, 1), "what the guest has asked for meanwhile follows"
    config.write(PM, 4, 0x00200000)
    there.passthrough.run()
    assert config.read(PM + 2, 2) == 0x8020
    there.close()


@settings(max_examples=300, deadline=None)
@given(
    st.binary(min_size=256, max_size=256),
    st.sampled_from([256, 4096]),
    st.lists(st.tuples(st.integers(0, 0x120), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 64)), max_size=30),
    st.lists(st.sampled_from([1, 3, 5, 9, 0x10, 0x11, 0x13]), min_size=1, max_size=8),
    st.lists(st.integers(0x40, 0xFF), min_size=1, max_size=8),
    st.booleans(),
)
def test_any_configuration_space(
    image: bytes, size: int, writes: list[tuple[int, int, int]], ids: list[int], places: list[int], later: bool
) -> None:
    """One that is broken is refused, or is a function that a guest does what it likes with."""
    config = bytearray(image.ljust(size, b"\0"))
    config[0x06] |= 0x10
    config[0x0E] = 0
    link = 0x34
    for cap_id, at in zip(ids, places, strict=False):  # lists that cross, and end close to the end
        config[link], config[at & 0xFC], link = at & 0xFC, cap_id, (at & 0xFC) + 1
    device = FakeHostDevice(config, {0: (0x4000, ((0, 0x4000),)), 2: (0x100, ())}, (1, 1, 2048))
    try:
        there = Given(device, later=later)
    except (UserError, ValueError):
        assert device.closed
        return
    try:
        function, space = there.function, there.function.config
        assert isinstance(space, HostConfigSpace)
        assert len(space.data) == len(space.writable) == len(space.host) == size and space.shape()
        for offset, width, value in writes:
            there.config.write(offset, width, value & (1 << 8 * width) - 1)
            if value & 1:
                there.passthrough.run()
            assert 0 <= there.config.read(offset, width) < 1 << 8 * width
        ours = [cap_id for _, cap_id in capabilities(function.config.data) if cap_id in (5, 0x11)]
        assert len(ours) == len(set(ours))
    finally:
        there.close()


# A guest that masks and unmasks as fast as it can


def test_a_storm_of_masks_asks_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would take all vectors off, or some microseconds each: the device signals on, and what it sends waits."""
    there = Given(nic(vectors=64))
    there.place()
    for vector in range(64):
        there.entry(vector, masked=True)
    there.config.write(MSIX + 2, 2, ENABLE)
    asked: list[str] = []
    for name in ("set_triggers", "disable", "unmask", "read", "write", "irq", "region"):
        monkeypatch.setattr(there.device, name, lambda *_, name=name: asked.append(name))
    irqs = there.board.host.msi.irqs[4:]  # type: ignore[attr-defined]
    write, read = there.board.memory_bus.write, there.board.memory_bus.read
    for turn in range(200):
        vector = turn % 64
        write(BAR + TABLE + 16 * vector + 12, 4, 0)
        assert not irqs[vector].masked
        write(BAR + TABLE + 16 * vector + 12, 4, 1)
        assert irqs[vector].masked
        there.device.fire(vector)
        assert read(BAR + PBA, 8) >> vector & 1, "it waits"
    assert asked == [] and there.on() == (MSIX_INDEX, 64)
    for _ in range(100):
        there.config.write(MSIX + 3, 1, (ENABLE | MASKALL) >> 8)
        there.config.write(MSIX + 3, 1, ENABLE >> 8)
    assert set(asked) <= {"read"} and there.on() == (MSIX_INDEX, 64)
    monkeypatch.undo()
    there.close()
