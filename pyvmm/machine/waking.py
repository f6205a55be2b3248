"""Where a guest wants to go on after S3: the waking vector that it has left in the FACS.

Source: ACPI 6.5, 5.2.10 (FACS) and 16.3.2 (BIOS initialization of memory): the processor begins in real mode, CS the
vector's address divided by 16 and IP what is left of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvmm.acpi.tables import FacsTable
from pyvmm.board import layout
from pyvmm.boot.entry import CpuState, real_mode

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

REAL_MODE_END: Final = 1 << 20


def waking_state(memory: GuestMemory) -> CpuState | None:
    """How the first vCPU begins; None where the guest has left nothing that it could begin at."""
    facs = FacsTable.from_buffer_copy(memory.read(layout.FACS, layout.FACS_SIZE))
    vector = facs.Firmware_Waking_Vector
    if facs.Signature != b"FACS" or not 0 < vector < REAL_MODE_END:
        return None
    return real_mode(vector >> 4, vector & 15)
