"""Reset control register of Intel's chipsets, port 0xCF9.

    bit 1  SYS_RST   what kind of reset: 1 the whole machine, 0 the processors (INIT)
    bit 2  RST_CPU   the reset happens when this goes from 0 to 1
    bit 3  FULL_RST  the power supply is switched off and on as well

Source: Intel 82801 (ICH9) data sheet, section 13.7.5 (RST_CNT); Linux
arch/x86/kernel/reboot.c, BOOT_CF9_FORCE.

The port lies inside CONFIG_ADDRESS (0xCF8-0xCFB), which answers only 32-bit accesses: whoever answers there hands
bytes at 0xCF9 to this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.trace import OFF, Channel

RCR_SYS_RST: Final = 0x02
RCR_RST_CPU: Final = 0x04
RCR_FULL_RST: Final = 0x08


class ResetControl:
    """*hard_reset* starts the whole machine again, *soft_reset* only the processors."""

    STATE = ("_rcr",)

    def __init__(self, hard_reset: Callable[[], None], soft_reset: Callable[[], None], trace: Channel = OFF) -> None:
        self._hard_reset = hard_reset
        self._soft_reset = soft_reset
        self._trace = trace
        self._rcr = 0

    def reset(self) -> None:
        self._rcr = 0

    def read(self, offset: int, size: int) -> int:
        return self._rcr if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0:
            return
        began = value & ~self._rcr & RCR_RST_CPU
        self._rcr = value & (RCR_SYS_RST | RCR_RST_CPU | RCR_FULL_RST)
        if began:
            if self._trace.enabled:
                self._trace(f"reset, port 0xcf9 = {value & 0xFF:#04x}")
            self._rcr &= ~RCR_RST_CPU
            if value & (RCR_SYS_RST | RCR_FULL_RST):
                self._hard_reset()
            else:
                self._soft_reset()
