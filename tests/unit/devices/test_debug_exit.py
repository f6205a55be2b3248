"""The debug-exit port on a bus, as a guest reaches it."""

from __future__ import annotations

import pytest

from pyvmm.bus import Bus
from pyvmm.devices.debug_exit import DebugExit


@pytest.mark.parametrize(("size", "value"), [(1, 0x2A), (2, 0x1234), (4, 0xFFFFFFFF)])
def test_each_width_ends_with_the_value(size: int, value: int) -> None:
    ended: list[int] = []
    bus = Bus("pio", 0x10000)
    bus.map(0xF4, 4, DebugExit(ended.append))
    assert bus.read(0xF4, size) == 0
    bus.write(0xF5, 1, 9)
    assert ended == []
    bus.write(0xF4, size, value)
    assert ended == [value]
