"""A port that prints, for guests without a driver. Bochs invented it; QEMU calls it isa-debugcon.

Port 0xE9. A write prints one byte; a read gives 0xE9, so that a guest can tell whether anybody listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

DEBUGCON_PORT: Final = 0xE9


class Debugcon:
    """*transmit* gets what the guest prints, a byte a call."""

    STATE = ()

    def __init__(self, transmit: Callable[[bytes], None]) -> None:
        self._transmit = transmit

    def reset(self) -> None:
        """It has no state."""

    def read(self, offset: int, size: int) -> int:
        return DEBUGCON_PORT

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._transmit(bytes((value & 0xFF,)))
