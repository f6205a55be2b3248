"""Flat binaries: bytes that are put at an address and entered there, in the mode that the user names.

    real     16-bit real mode, CS:IP = the address; below 1 MiB
    32       32-bit flat protected mode, paging off
    64       64-bit long mode, the first 4 GiB mapped to themselves
    linux32  32-bit flat protected mode, ESI = boot_params: a raw Linux kernel (rawlinux.py)

The stack of the first three grows down from the address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.entry import CpuState, long_mode, protected_mode, real_mode
from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import FOUR_GIB, HIGH_MEMORY_GPA, INFO_GPA, LOADER_END, no_ram_advice
from pyvmm.memory import GuestMemory, GuestMemoryError

if TYPE_CHECKING:
    from pyvmm.boot.image import Image

MODES: Final = {"real": 0x7C00, "32": HIGH_MEMORY_GPA, "64": HIGH_MEMORY_GPA, "linux32": HIGH_MEMORY_GPA}
"""The modes, each with the address that is meant where none is given."""


class Flat(NamedTuple):
    """How to start a flat binary: one of MODES, and where it is put and entered."""

    mode: str
    address: int

    @classmethod
    def parse(cls, text: str) -> Flat:
        """MODE or MODE@ADDRESS as a user writes it, the address in C notation: real@0x7c00, 64, linux32."""
        mode, at, address = text.partition("@")
        if mode not in MODES:
            raise BootError(f"no mode of a flat binary: {mode!r}: one of {', '.join(MODES)}, then @ADDRESS if need be")
        try:
            return cls(mode, int(address, 0) if at else MODES[mode])
        except ValueError:
            raise BootError(f"no address of a flat binary: {address!r}: write it as 0x7c00") from None


def load_flat(memory: GuestMemory, image: Image, flat: Flat) -> CpuState:
    """Load a binary of mode real, 32 or 64; BootError when it does not fit there."""
    mode, address = flat
    end = address + image.size
    limit = HIGH_MEMORY_GPA if mode == "real" else FOUR_GIB
    if address < 0 or address >= limit:
        raise BootError(f"{image.name}: {address:#x} is no address that a flat binary of mode {mode} can start at")
    if mode != "real" and address < LOADER_END and end > INFO_GPA:
        raise BootError(f"{image.name}: would cover {INFO_GPA:#x}-{LOADER_END - 1:#x}, where its first GDT is: move it")
    try:
        image.load(memory, address, 0, image.size)
    except GuestMemoryError:
        advice = no_ram_advice(address, end, "name another address")
        raise BootError(f"{image.name}: {image.size} bytes do not fit into RAM at {address:#x}: {advice}") from None
    if mode == "real":
        # From the lowest segment that reaches it, so that a boot sector gets its 0000:7C00.
        cs = 0 if address < 0x10000 else (address >> 4) & 0xF000
        ip = address - (cs << 4)
        return real_mode(cs, ip, sp=ip & ~1)
    if mode == "32":
        return protected_mode(memory, address, esp=address & ~15)
    return long_mode(memory, address, rsp=address & ~15)
