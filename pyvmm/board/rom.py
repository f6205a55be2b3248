"""The ROM of a firmware, and where a PC has it: below 4 GiB, and the last of it below 1 MiB.

The processor's first instruction after a reset is 16 bytes below 4 GiB. All of the image is there, and cannot be
written. Real mode reaches but the first MiB, so a PC shows the last 128 KiB of the ROM below 1 MiB too, until its
firmware has copied them into the RAM that lies behind, the shadow. Here a reset makes that copy, and it can be written.

Source: Intel SDM volume 3, 10.1.4 (first instruction executed); Intel 3 Series Express Chipset data sheet, 3.2 and
5.1.12 (legacy address range, PAM).
"""

from __future__ import annotations

import mmap
from typing import Final

from pyvmm.board import layout
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import KIB, MIB, PAGE_SIZE

SHADOW_SIZE: Final = 128 * KIB
SHADOW_END: Final = MIB
ROM_MOST: Final = 16 * MIB
"""Bytes; below are the APICs."""


class FirmwareRom:
    """*image*, whole pages of at most 16 MiB, at the end of the first 4 GiB of *memory*. UserError for another size."""

    def __init__(self, memory: GuestMemory, image: bytes, name: str) -> None:
        size = len(image)
        if not image or size % PAGE_SIZE or size > ROM_MOST:
            raise UserError(
                f"firmware {name}: {size} bytes are no image of one: it has whole pages of 4 KiB, 16 MiB at most"
            )
        self._memory = memory
        self.image = image
        self.gpa = layout.HOLE_END - size
        buffer = mmap.mmap(-1, size)
        buffer[:] = image
        memory.add(Region(self.gpa, memoryview(buffer), kind="rom"))

    def shadow(self) -> int:
        """Copy its last 128 KiB, or all of it where it is smaller, to where they end at 1 MiB; the address of the copy.
        GuestMemoryError where RAM does not reach so far."""
        copy = self.image[-SHADOW_SIZE:]
        gpa = SHADOW_END - len(copy)
        self._memory.write(gpa, copy)
        return gpa
