"""The guest's RAM: one memfd, mapped once, laid out around the VGA window and the 3-4 GiB hole."""

from __future__ import annotations

import mmap
import os
from typing import Final

from kvm_cffi import KvmError, Vm
from pyvmm.board.layout import HIGH_MEMORY, HOLE_END, HOLE_START, LOW_RAM_END
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory
from pyvmm.units import MIB

MAP_NORESERVE: Final = 0x4000
"""<asm-generic/mman-common.h>; the mmap module does not name it before Python 3.13."""


def host_memory() -> int:
    """The host's RAM and swap, in bytes (MemTotal + SwapTotal of /proc/meminfo)."""
    total = 0
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith(("MemTotal:", "SwapTotal:")):
                total += int(line.split()[1]) << 10
    return total


class Ram:
    """*size* bytes, page-aligned and at least 1 MiB; raises UserError when this host cannot give so much."""

    def __init__(self, size: int) -> None:
        if size > host_memory():
            raise UserError(
                f"-m {size // MIB}M: this host has {host_memory() // MIB} MiB of memory and swap: ask for less"
            )
        self.size = size
        self.fd = os.memfd_create("pyvmm-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED | MAP_NORESERVE)
        except OSError as error:
            os.close(self.fd)
            raise UserError(f"-m {size // MIB}M: {error.strerror}: ask for less") from None
        whole = memoryview(self._map)
        low = min(size, HOLE_START)
        pieces = [(0, 0, min(LOW_RAM_END, low)), (HIGH_MEMORY, HIGH_MEMORY, low)]
        if size > HOLE_START:
            pieces.append((HOLE_END, HOLE_START, size))
        self.slots = [(gpa, whole[start:end]) for gpa, start, end in pieces if end > start]
        """(gpa, buffer) of each KVM memory slot; RAM behind the VGA window is not used."""
        self.memory = GuestMemory(self.slots)
        self._whole = whole

    @property
    def below_4g(self) -> int:
        """Bytes of RAM below the hole, the unused VGA window counted as a PC counts it."""
        return min(self.size, HOLE_START)

    @property
    def above_4g(self) -> int:
        """Bytes of RAM from 4 GiB up."""
        return max(0, self.size - HOLE_START)

    def attach(self, vm: Vm) -> int:
        """Make the slots, from slot 0; returns how many."""
        for slot, (gpa, buffer) in enumerate(self.slots):
            try:
                vm.set_user_memory_region(slot, gpa, buffer)
            except KvmError as error:
                raise UserError(f"KVM refuses {len(buffer) // MIB} MiB of guest RAM ({error}): ask for less") from None
        return len(self.slots)

    def close(self) -> None:
        """Give the memory back; views that somebody still holds keep the mapping until they go."""
        os.close(self.fd)
        self.memory.release()
        for _, buffer in self.slots:
            buffer.release()
        self.slots.clear()
        self._whole.release()
        try:
            self._map.close()
        except BufferError:
            pass
