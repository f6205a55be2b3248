"""A breakpoint that every KVM stops at: OUT to a port of ours in the place of an instruction of the guest's kernel.

Where KVM does not trap INT3 and leaves the debug registers alone (a processor in software, QEMU's emulated SVM), an OUT
still ends KVM_RUN. It has two bytes, so it stands where the instruction has two at least, and only in ring 0, for
elsewhere it is #GP. Intel SDM volume 2: OUT, opcode map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.bus import Bus
from pyvmm.report.cpu import Cpu
from pyvmm.units import PAGE_SIZE

PORT: Final = 0xEA
"""Of no device of a PC's."""
OUT: Final = bytes((0xE6, PORT))
"""OUT imm8, AL: no register changes, and no flag."""
_ONE_BYTE: Final = frozenset(
    bytes.fromhex(
        "06 07 0e 16 17 1e 1f 27 2f 37 3f 50 51 52 53 54 55 56 57 58 59 5a 5b 5c 5d 5e 5f 60 61 6c 6d 6e 6f"
        "90 91 92 93 94 95 96 97 98 99 9b 9c 9d 9e 9f a4 a5 a6 a7 aa ab ac ad ae af c3 c9 cb cc ce cf d7"
        "ec ed ee ef f1 f4 f5 f8 f9 fa fb fc fd"
    )
)
"""Instructions that end with their opcode, in one mode or another."""
_INC_DEC: Final = range(0x40, 0x50)
"""One byte too, but for 64-bit code, where they are prefixes."""


def may_stand(cpu: Cpu, linear: int) -> bool:
    """Whether OUT may take the place of the instruction at *linear*, as *cpu* sees it."""
    walk, code = cpu.walk(linear), cpu.read(linear, len(OUT))
    if walk.physical is None or len(code) < len(OUT) or linear % PAGE_SIZE + len(OUT) > PAGE_SIZE:
        return False
    if code[0] in _ONE_BYTE or (code[0] in _INC_DEC and cpu.bits != 64):
        return False
    return not walk.user if walk.shift else cpu.cpl == 0


class PortTrap:
    """The device at PORT of *bus*, while it is wanted; *hit* is called at each OUT to it, in the vCPU's thread and
    under the machine lock."""

    def __init__(self, bus: Bus, hit: Callable[[], None]) -> None:
        self._bus = bus
        self._hit = hit
        self._mapped = False

    def map(self) -> bool:
        """Whether it is there now: a device of the user's may have the port."""
        if not self._mapped:
            try:
                self._bus.map(PORT, 1, self)
            except ValueError:
                return False
            self._mapped = True
        return True

    def unmap(self) -> None:
        if self._mapped:
            self._bus.unmap(PORT, 1)
            self._mapped = False

    def read(self, offset: int, size: int) -> int:
        """As if it were not there."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self._hit()
