"""System control ports A (0x92) and B (0x61) of the PS/2 and every PC since.

    0x92  bit 0  fast reset: 0 to 1 resets the processor        bit 1  A20 gate, 1 lets address line 20 through
    0x61  bit 0  gate of PIT channel 2                          bit 1  speaker data
          bit 2  1 disables SERR# as a source of NMI            bit 3  1 disables IOCHK# as a source of NMI
          bit 4  toggles with each memory refresh (read only)   bit 5  output of PIT channel 2 (read only)
          bit 6  IOCHK# was the NMI (read only)                 bit 7  SERR# was the NMI (read only)

Source: Intel 82801 (ICH9) data sheet, sections 13.7.1 (NMI_SC) and 13.7.3 (PORT92); Linux arch/x86/kernel/tsc.c
(pit_calibrate_tsc watches bit 5) and arch/x86/kernel/nmi.c (default_get_nmi_reason).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.clock import Clock
from pyvmm.trace import OFF, Channel

PORT92_FAST_RESET: Final = 0x01
PORT92_A20: Final = 0x02

PORT61_GATE2: Final = 0x01
PORT61_SPEAKER: Final = 0x02
PORT61_WRITABLE: Final = 0x0F
PORT61_REFRESH: Final = 0x10
PORT61_OUT2: Final = 0x20
PORT61_IOCHK: Final = 0x40
PORT61_SERR: Final = 0x80

REFRESH_PERIOD: Final = 15_085
"""Nanoseconds between two refresh requests: PIT channel 1 of a PC counts 18 of its clocks."""


class SystemControlA:
    """Port 0x92. *reset* resets the processor; *a20* is told of each change of the A20 gate, which starts open."""

    STATE = ("_value",)

    def __init__(self, reset: Callable[[], None], a20: Callable[[bool], None], trace: Channel = OFF) -> None:
        self._reset = reset
        self._a20 = a20
        self._trace = trace
        self._value = PORT92_A20

    def reset(self) -> None:
        self._value = PORT92_A20

    def read(self, offset: int, size: int) -> int:
        return self._value if offset == 0 else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0:
            return
        changed = (value ^ self._value) & 0xFF
        self._value = value & 0xFF
        if changed & PORT92_A20:
            self._a20(bool(value & PORT92_A20))
        if changed & value & PORT92_FAST_RESET:
            self._value &= ~PORT92_FAST_RESET
            if self._trace.enabled:
                self._trace("fast reset, port 0x92")
            self._reset()


class SystemControlB:
    """Port 0x61. *set_gate2* drives the gate of the PIT's channel 2, *out2* reads its output.

    *speaker*, if given, is told of each change of the speaker data bit.
    """

    STATE = ("_value", "_nmi")

    def __init__(
        self,
        set_gate2: Callable[[bool], None],
        out2: Callable[[], bool],
        clock: Clock,
        speaker: Callable[[bool], None] | None = None,
        trace: Channel = OFF,
    ) -> None:
        self._set_gate2 = set_gate2
        self._out2 = out2
        self._clock = clock
        self._speaker = speaker
        self._trace = trace
        self._value = 0
        self._nmi = 0

    def reset(self) -> None:
        self._value = 0
        self._nmi = 0
        self._set_gate2(False)

    def assert_nmi(self, source: int) -> None:
        """Show *source* (PORT61_IOCHK, PORT61_SERR or both) as the reason of an NMI until the guest disables it."""
        self._nmi |= source & (PORT61_IOCHK | PORT61_SERR)

    def read(self, offset: int, size: int) -> int:
        if offset != 0:
            return 0xFF
        value = self._value | self._nmi
        if self._clock.now() // REFRESH_PERIOD & 1:
            value |= PORT61_REFRESH
        if self._out2():
            value |= PORT61_OUT2
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0:
            return
        changed = value ^ self._value
        self._value = value & PORT61_WRITABLE
        # Disabling a source clears its status: bit 2 that of bit 7, bit 3 that of bit 6.
        if value & 0x04:
            self._nmi &= ~PORT61_SERR
        if value & 0x08:
            self._nmi &= ~PORT61_IOCHK
        if changed & PORT61_GATE2:
            self._set_gate2(bool(value & PORT61_GATE2))
        if changed & PORT61_SPEAKER:
            if self._trace.enabled:
                self._trace(f"speaker {'on' if value & PORT61_SPEAKER else 'off'}")
            if self._speaker is not None:
                self._speaker(bool(value & PORT61_SPEAKER))
