"""Ports by which a BIOS lets itself be watched; they cost a guest nothing while nobody does.

    0x402  a byte of what it logs, as Bochs and SeaBIOS have it; reads E9 while somebody listens, else FF
    0x404  32 bits: the address of the registers of a call of our BIOS (struct regs of firmware/bios/bios.h), bit 31 set
           when the call returns; reads 1 while somebody listens, else FFFFFFFF

SeaBIOS looks at the former once, when it starts; our BIOS at the latter then, and at each tick of its clock.
"""

from __future__ import annotations

from typing import Final

from pyvmm.bus import ALL_ONES
from pyvmm.devices.bios_calls import REGISTERS, Registers, answered, asked
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.trace import OFF, Channel

LOG_PORT: Final = 0x402
LOG_READS: Final = 0xE9
CALL_PORT: Final = 0x404
CALL_RETURNS: Final = 1 << 31
LONGEST_LINE: Final = 200
DEEPEST: Final = 8
"""Calls that are open at once."""


class BiosLog:
    """Port 0x402: lines of text go to *trace*."""

    STATE = ("_line",)

    def __init__(self, trace: Channel = OFF) -> None:
        self._trace = trace
        self.reset()

    def reset(self) -> None:
        self._line = bytearray()

    def read(self, offset: int, size: int) -> int:
        return LOG_READS if self._trace.enabled and offset == 0 and size == 1 else ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0 or not self._trace.enabled:
            return
        byte = value & 0xFF
        if byte != 0x0A:
            self._line.append(byte)
        if byte == 0x0A or len(self._line) >= LONGEST_LINE:
            self._trace("".join(c if c.isprintable() else "." for c in self._line.decode("latin-1")))
            self._line.clear()


class BiosCalls:
    """Port 0x404: each call of the BIOS is a line of *trace*, and its return another."""

    STATE = ("_open",)

    def __init__(self, memory: GuestMemory, trace: Channel = OFF) -> None:
        self._memory = memory
        self._trace = trace
        self.reset()

    def reset(self) -> None:
        self._open: dict[int, bytes] = {}
        """The registers at the calls that have not returned, by where they lie."""

    def read(self, offset: int, size: int) -> int:
        return 1 if self._trace.enabled and offset == 0 and size == 4 else ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != 0 or size != 4 or not self._trace.enabled:
            return
        where = value & ~CALL_RETURNS
        try:
            data = self._memory.read(where, REGISTERS.size)
        except GuestMemoryError:
            return
        registers = Registers(*REGISTERS.unpack(data))
        if value & CALL_RETURNS:
            before = self._open.pop(where, None)
            if before is not None:
                self._trace(answered(Registers(*REGISTERS.unpack(before)), registers))
            return
        self._open[where] = data
        if len(self._open) > DEEPEST:  # those that never return, as a boot sector's last
            del self._open[next(iter(self._open))]
        self._trace(asked(registers, self._memory.read))
