"""The devices of docs/examples, loaded as --device loads them and driven as their Linux drivers drive them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.clock import Clock
from pyvmm.device_spec import DeviceSpec
from pyvmm.machine.registry import make
from pyvmm.memory import GuestMemory
from pyvmm.pci.device import PciDevice
from pyvmm.pci.slot import FakeSlot
from pyvmm.testing.pci import Board
from pyvmm.trace import OFF, Channel
from tests.rig.devices import made

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"


@pytest.mark.parametrize(("option", "events"), [("", 3), (",events=1", 1)])
def test_pvpanic(option: str, events: int, capfd: pytest.CaptureFixture[str]) -> None:
    """pvpanic_pci_probe maps BAR 0, reads the capability and writes an event."""
    told: list[str] = []
    board = Board(trace=Channel("pci", lambda ns, channel, line: told.append(line), enabled=True))
    device = made(f"{EXAMPLES / 'pvpanic.py'}:PvPanic{option}")
    board.host.root.add(device, 3)
    config = board.ecam(0, 3)
    assert config.read(0, 4) == 0x00111B36 and config.size_bar(0) == (0, 16)
    config.write(0x10, 4, 0xC0000000)
    config.write(4, 2, 2)
    assert board.memory_bus.read(0xC0000000, 1) == events
    told.clear()
    board.memory_bus.write(0xC0000000, 1, 1)
    assert told.pop() == "03.0 PvPanic: the guest has panicked"
    board.memory_bus.write(0xC0000000, 1, 2)
    assert told == (["03.0 PvPanic: the guest has panicked and starts its crash kernel"] if events & 2 else [])
    device.trace = OFF
    board.memory_bus.write(0xC0000000, 1, 1)
    assert len(told) <= 1 and capfd.readouterr() == ("", ""), "it prints nothing: the machine would wait for it"


def test_edu_and_its_test_are_short_and_pass() -> None:
    """As a user runs it, in a folder of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    ran = subprocess.run([*command, "test_edu.py"], cwd=EXAMPLES, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert len((EXAMPLES / "edu.py").read_text().splitlines()) <= 80
    assert len((EXAMPLES / "test_edu.py").read_text().splitlines()) <= 30


@pytest.fixture
def edu() -> tuple[Board, PciDevice]:
    board = Board()
    device: PciDevice = make(DeviceSpec.parse(f"{EXAMPLES / 'edu.py'}:Edu,dma_ms=1"), {Clock: lambda: board.clock})  # type: ignore[assignment]
    board.host.root.add(device, 3)
    config = board.ecam(0, 3)
    config.write(0x10, 4, 0xD0000000)
    config.write(4, 2, 6)
    return board, device


def test_edu_sends_messages(edu: tuple[Board, PciDevice]) -> None:
    """One each time that it raises, MSI being on, whether the last was acknowledged or not."""
    board, _ = edu
    config, bus = board.ecam(0, 3), board.memory_bus
    at = config.find(5)
    config.write(at + 4, 4, 0xFEE00000)
    config.write(at + 12, 2, 0x41)
    config.write(at + 2, 2, 1)
    for _ in range(2):
        bus.write(0xD0000060, 4, 2)
    assert len(board.msi.sent) == 2 and not board.lines[3].level
    assert bus.read(0xD0000024, 4) == 2


def test_edu_stays_in_its_memory(edu: tuple[Board, PciDevice]) -> None:
    """A transfer that leaves the device's memory, or RAM, moves nothing; and a reset ends what is under way."""
    board, device = edu
    bus = board.memory_bus
    board.ram.write(0, b"x" * 64)
    for source, destination, count, command in (
        (0, 0x40FFF, 2, 1),
        (0, 0x3FFFF, 1, 1),
        (0, 0x40000, 1 << 40, 1),
        (0xFFFFFF0, 0x40000, 64, 1),
        (0x40000, 0xFFFFFFF, 8, 3),
    ):
        for register, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
            bus.write(0xD0000000 + register, 8, value)
        board.clock.advance(1_000_000)
        assert bus.read(0xD0000098, 4) == command & ~1
        assert not any(device.memory)  # type: ignore[attr-defined]
    bus.write(0xD0000008, 4, 5)
    device.reset_function()
    board.clock.advance(1_000_000)
    assert device.regs[0x08] == 0  # type: ignore[attr-defined]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98, 0x1234]),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 2**64 - 1),
        ),
        max_size=30,
    )
)
def test_edu_takes_anything(accesses: list[tuple[int, int, int]]) -> None:
    slot = FakeSlot(GuestMemory.of_size(1 << 16))
    device = made(f"{EXAMPLES / 'edu.py'}:Edu,dma_ms=1")
    device.connect(slot)
    for offset, size, value in accesses:
        device.write(offset, size, value & (1 << 8 * size) - 1)
        assert isinstance(device.read(offset, size), int)
        device.clock.advance(700_000)


def test_idio16() -> None:
    """gpio-pci-idio-16: outputs, the inputs that the cable joins to them, interrupt, acknowledge, disable."""
    board = Board()
    board.host.root.add(made(f"{EXAMPLES / 'idio16.py'}:Idio16"), 3)
    config, io, line = board.ecam(0, 3), board.io_bus, board.lines[3]
    assert config.size_bar(2) == (1, 8) and config.read(0x3D, 1) == 1
    config.write(0x18, 4, 0xC000)
    config.write(4, 2, 1)
    io.write(0xC003, 1, 0)
    io.write(0xC002, 1, 0)
    io.write(0xC001, 1, 0)
    io.write(0xC000, 1, 0x01)
    assert io.read(0xC000, 1) == io.read(0xC001, 1) == 1 and not line.level
    io.read(0xC002, 1)
    io.write(0xC004, 1, 0x80)
    assert line.level and io.read(0xC006, 1) == 4 | 2 and io.read(0xC005, 1) == 0x80
    io.write(0xC001, 1, 0)
    assert not line.level and io.read(0xC006, 1) == 0
    io.write(0xC002, 1, 0)
    io.write(0xC000, 1, 0)
    assert not line.level


def test_idio16_in_a_slot_of_its_own() -> None:
    """As docs/devices.md has it."""
    slot = FakeSlot(GuestMemory.of_size(1 << 20))
    device = made(f"{EXAMPLES / 'idio16.py'}:Idio16")
    device.connect(slot)
    device.read(2, 1)
    device.write(0, 1, 0x80)
    assert slot.lines[1].level
    device.disconnect()
    assert not slot.lines[1].level
