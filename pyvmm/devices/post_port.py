"""The POST code port 0x80, where a BIOS says how far it has come and Linux writes to pass a microsecond.

On a PC it is the spare page register of the DMA controller, which reads back (Linux arch/x86/kernel/io_delay.c).
"""

from __future__ import annotations

from pyvmm.trace import OFF, Channel


class PostPort:
    """Keeps the last byte written."""

    STATE = ("code",)

    def __init__(self, trace: Channel = OFF) -> None:
        self._trace = trace
        self.code = 0
        """The last POST code."""

    def reset(self) -> None:
        self.code = 0

    def read(self, offset: int, size: int) -> int:
        return self.code if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.code = value & 0xFF
            if self._trace.enabled:
                self._trace(f"POST code {self.code:#04x}")
