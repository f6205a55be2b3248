"""doubler.py under test, alone and with a driver: pytest test_doubler.py"""

from pathlib import Path

import pytest
from pyvmm.testing import Board
from pyvmm.testing.vm import GuestVm

from doubler import DONE, ENABLE, NUMBER, Doubler

HERE = Path(__file__).parent
BAR = 0xD0000000


def test_alone() -> None:
    """The test is the driver: no KVM, no guest."""
    board = Board()
    board.host.root.add(Doubler(), slot=3)
    config, line, bus = board.ecam(slot=3), board.lines[3], board.memory_bus
    assert config.read(0, 4) == 0xD0B11234 and config.size_bar(0) == (0, 16)
    config.write(0x10, 4, BAR)
    config.write(0x04, 2, 0x2)  # decode memory
    bus.write(BAR + NUMBER, 4, 21)
    assert bus.read(BAR + NUMBER, 4) == 42 and not line.level
    bus.write(BAR + ENABLE, 4, 1)
    assert bus.read(BAR + DONE, 4) == 1 and line.level
    bus.write(BAR + DONE, 4, 0)
    assert bus.read(BAR + DONE, 4) == 0 and not line.level


@pytest.mark.pyvmm(guest=f"{HERE}/doubler_guest", devices=[f"{HERE}/doubler.py:Doubler"], ready="> ")
@pytest.mark.parametrize("number", [21, 0x80000001])
def test_with_a_driver(vm: GuestVm, number: int) -> None:
    """The guest is started once; each test finds it as it was when it was ready."""
    vm.send(f"{number}\n")
    assert f"\n{number * 2 % (1 << 32)}\n" in vm.expect("> ").replace("\r", "")
