"""A port that ends the machine, for guests that are tests. Not a chip: QEMU's isa-debug-exit is the model.

Port 0xF4, four bytes. A write of v ends the machine with the value v, where QEMU's status would be v * 2 + 1. Reads 0.
"""

from __future__ import annotations

from collections.abc import Callable


class DebugExit:
    """*end* is called with each value written, up to 32 bits."""

    STATE = ()

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._end(value & 0xFFFFFFFF)
