"""Each access on the channel of the part that answers it, on a board that runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvm_cffi import Exit
from kvm_cffi.exits import Hlt, MmioRead, MmioWrite, PioIn, PioOut
from pyvmm.board import layout
from pyvmm.board.access_trace import AccessTrace
from pyvmm.board.pc import Pc
from pyvmm.config import MachineConfig
from pyvmm.machine.describe import described

EDU = Path(__file__).resolve().parents[3] / "docs" / "examples" / "edu.py"
BAR = layout.PCI_MMIO_START
VCPU: Any = SimpleNamespace(id=0, get_regs=lambda: SimpleNamespace(rip=0x1234))


class Watched:
    """A board, and what its guest does, exit by exit."""

    def __init__(self, board: Pc) -> None:
        self.board = board
        self.lines: list[str] = []
        board.trace._sink = lambda ns, channel, message: self.lines.append(f"{channel} {message}")
        self.accesses = AccessTrace(board, board.trace)

    def sees(self, exit: Exit) -> list[str]:
        """The lines of *exit*, which is carried out."""
        self.lines.clear()
        self.accesses.exited(VCPU, exit)
        match exit:
            case PioOut(port, size, value):
                self.board.pio.write(port, size, value)
            case MmioWrite(address, size, value):
                self.board.mmio.write(address, size, value)
            case PioIn(port, size):
                self.accesses.answered(VCPU, exit, self.board.pio.read(port, size))
            case MmioRead(address, size):
                self.accesses.answered(VCPU, exit, self.board.mmio.read(address, size))
        return self.lines


@pytest.fixture
def watched() -> Iterator[Watched]:
    devices = (f"{EDU}:Edu,id=edu", "virtio-rng")
    with described(MachineConfig(guest="hello", devices=devices, irqchip="split", root_ports=1)) as board:
        board.trace.on("edu", "com1", "ioapic", "pci", "reset-control", "rtc")
        yield Watched(board)


def test_bars_by_device_and_offset(watched: Watched) -> None:
    assert watched.sees(MmioWrite(BAR + 0x20, 4, 0x80)) == ["edu BAR0+0x20 W4 <- 0x80 rip=0x1234"]
    assert watched.sees(MmioRead(BAR + 0x20, 4)) == ["edu BAR0+0x20 R4 -> 0x80 rip=0x1234"]
    watched.board.trace.off("edu")
    assert watched.sees(MmioRead(BAR + 0x20, 4)) == []


def test_a_bar_that_moves_is_found_again(watched: Watched) -> None:
    assert watched.sees(PioOut(0xCF8, 4, 0x80000810)) == [
        "pci CONFIG_ADDRESS W4 <- 0x80000810 (00:01.0 BAR0) rip=0x1234"
    ]
    assert watched.sees(PioOut(0xCFC, 4, 0xD0000000)) == [
        "edu 00:01.0 BAR0 W4 <- 0xd0000000 rip=0x1234",
        "edu BAR0 is at 0xd0000000, 0x100000 bytes",
    ]
    assert watched.sees(MmioRead(BAR, 4)) == []
    assert watched.sees(MmioRead(0xD0000000, 4)) == ["edu BAR0+0x0 R4 -> 0x10000ed rip=0x1234"]


def test_chips_by_port_and_address(watched: Watched) -> None:
    assert watched.sees(PioIn(0x3FD, 1)) == ["com1 port 0x3fd R1 -> 0x60 rip=0x1234"]
    line = f"ioapic {layout.IOAPIC:#x}+0x10 R4 -> 0x0 rip=0x1234"
    assert watched.sees(MmioRead(layout.IOAPIC + 0x10, 4)) == [line]
    assert watched.sees(PioIn(0x5000, 1)) == [] and watched.sees(PioIn(0x64, 1)) == [], "nobody's, and one that is off"
    watched.lines.clear()
    watched.accesses.gathered(True, 0x70, 1, 0x0F)
    assert watched.lines == ["rtc port 0x70 W1 <- 0xf"], "of whom it is, nobody knows any more"


def test_configuration_space(watched: Watched) -> None:
    assert watched.sees(PioIn(0xCFC, 4)) == ["pci CONFIG_DATA R4 -> 0xffffffff, not enabled rip=0x1234"]
    watched.sees(PioOut(0xCF8, 4, 0x8000F800))
    assert watched.sees(PioIn(0xCFE, 2)) == ["pci 00:1f.0 DEVICE_ID R2 -> 0xffff, no function rip=0x1234"]
    assert watched.sees(PioIn(0xCF8, 4)) == ["pci CONFIG_ADDRESS R4 -> 0x8000f800 (00:1f.0 VENDOR_ID) rip=0x1234"]
    assert watched.sees(MmioRead(layout.ECAM_START + (1 << 15) + 4, 2)) == ["edu 00:01.0 COMMAND R2 -> 0x2 rip=0x1234"]
    assert watched.sees(MmioRead(layout.ECAM_START, 4)) == ["pci 00:00.0 VENDOR_ID R4 -> 0x29c08086 rip=0x1234"]
    assert watched.sees(PioOut(0xCF9, 1, 0)) == ["reset-control port 0xcf9 W1 <- 0x0 rip=0x1234"]


def test_each_part_and_device_is_a_channel(watched: Watched) -> None:
    names = set(watched.board.trace.names)
    assert {"com1", "i8042", "vga", "pci", "post", "debug-exit", "ioapic", "edu", "virtio-rng", "root-port"} <= names
    assert {"exits", "kvm-run", "irq", "input"} <= names


sizes = st.sampled_from([1, 2, 4, 8])
anywhere = st.one_of(
    st.integers(0, 0xFFFF).flatmap(lambda port: st.sampled_from([PioIn(port, 4), PioOut(port, 1, 0x80)])),
    st.builds(PioOut, st.integers(0xCF8, 0xCFF), sizes.filter(lambda size: size < 8), st.integers(0, 255)),
    st.builds(MmioRead, st.integers(0, (1 << 52) - 8), sizes),
    st.builds(MmioRead, st.integers(layout.ECAM_START, layout.ECAM_START + layout.ECAM_SIZE), sizes),
    st.builds(MmioWrite, st.integers(BAR, BAR + (2 << 20)), sizes, st.integers(0, 255)),
    st.builds(Hlt),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(exits=st.lists(anywhere, max_size=20))
def test_whatever_the_guest_does(watched: Watched, exits: list[Exit]) -> None:
    watched.board.trace.on("all")
    for exit in exits:
        watched.sees(exit)
