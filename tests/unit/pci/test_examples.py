"""The devices of docs/examples, loaded as --device loads them and driven as their Linux drivers drive them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.memory import GuestMemory
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
