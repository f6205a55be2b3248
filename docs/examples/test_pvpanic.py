"""A driver's view of pvpanic.py, without KVM: pytest test_pvpanic.py"""

import pytest
from pyvmm.testing import Board

from pvpanic import PVPANIC_CRASH_LOADED, PVPANIC_PANICKED, PvPanic

BAR = 0xD0000000


def test_what_was_agreed_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    board, device = Board(), PvPanic(events=PVPANIC_PANICKED)
    monkeypatch.setattr(device, "panicked", told.append)
    board.host.root.add(device, slot=3)
    config, bus = board.ecam(slot=3), board.memory_bus
    assert config.read(0, 4) == 0x00111B36 and config.size_bar(0) == (0, 16)
    config.write(0x10, 4, BAR)
    config.write(0x04, 2, 0x2)  # decode memory
    assert bus.read(BAR, 1) == PVPANIC_PANICKED
    for event in (PVPANIC_CRASH_LOADED, PVPANIC_PANICKED, PVPANIC_CRASH_LOADED | PVPANIC_PANICKED):
        bus.write(BAR, 1, event)
    assert told == [PVPANIC_PANICKED, PVPANIC_PANICKED]
