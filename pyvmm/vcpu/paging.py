"""The guest's page tables, walked as the processor walks them: from a linear address to a guest physical one.

It needs no vCPU: a function that reads RAM and four control registers are enough. Tables are the guest's, and may hold
anything: a walk takes at most five steps, reads nothing but its entries, and says where it ended and why.

Source: Intel SDM volume 3, chapter 4: 4.3 (32-bit), 4.4 (PAE), 4.5 (4 and 5 levels), 4.6 (access rights).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from pyvmm.boot.entry import CR0_PG as CR0_PG
from pyvmm.boot.entry import CR4_PAE as CR4_PAE
from pyvmm.boot.entry import EFER_LMA as EFER_LMA
from pyvmm.memory import GuestMemoryError

CR0_WP: Final = 1 << 16
CR4_PSE: Final = 1 << 4
CR4_LA57: Final = 1 << 12
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_NXE: Final = 1 << 11
RFLAGS_AC: Final = 1 << 18

P, W, U, PWT, PCD, A, D, PS, G = (1 << bit for bit in range(9))
NX: Final = 1 << 63
_FLAGS: Final = (
    (P, "P"), (W, "W"), (U, "U"), (PWT, "PWT"), (PCD, "PCD"), (A, "A"), (D, "D"), (PS, "PS"), (G, "G"), (NX, "NX"),
)  # fmt: skip

PHYSICAL_BITS: Final = 52
"""The most physical address bits that an entry has room for (SDM volume 3, 4.1.4: MAXPHYADDR)."""
_SIZES: Final = {12: "4 KiB", 21: "2 MiB", 22: "4 MiB", 30: "1 GiB"}

ReadInt = Callable[[int, int], int]
"""Guest physical address and size in bytes to a little-endian int; GuestMemoryError where there is no RAM."""
Access = Literal["read", "write", "fetch"]


class ControlRegisters(Protocol):
    """What decides how a linear address is translated; kvm_cffi.Sregs has them. *efer* with LMA, as KVM gives it."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True)
class PagingEntry:
    """One step: entry *index* of a table of *level* (PML5, PML4, PDPT, PD, PT), at guest physical *address*."""

    level: str
    index: int
    address: int
    value: int | None
    """None where there is no RAM."""

    @property
    def flags(self) -> str:
        """The bits that are set, by their names; bit 7 of a page table's entry is PAT."""
        value = self.value or 0
        return " ".join("PAT" if (bit, self.level) == (PS, "PT") else name for bit, name in _FLAGS if value & bit)


@dataclass(frozen=True)
class Walk:
    """Where *linear* leads: *physical* in a page of 2**shift bytes, or None and *fault*, why not.

    The rights are those of all levels together; without paging everything may be done.
    """

    linear: int
    entries: tuple[PagingEntry, ...] = ()
    physical: int | None = None
    shift: int = 0
    """0 where paging is off."""
    fault: str = ""
    writable: bool = True
    user: bool = True
    executable: bool = True

    def refuses(self, access: Access, registers: ControlRegisters, user: bool, rflags: int = 0) -> str:
        """Why the processor refuses an *access* at CPL 3 (*user*) or below; empty where it is allowed (4.6.1)."""
        if self.physical is None:
            return self.fault
        if not self.shift:
            return ""
        if user and not self.user:
            return "a supervisor page"
        if access == "fetch":
            if not self.executable:
                return "NX"
            return "SMEP: a user page" if not user and self.user and registers.cr4 & CR4_SMEP else ""
        if not user and self.user and registers.cr4 & CR4_SMAP and not rflags & RFLAGS_AC:
            return "SMAP: a user page"
        if access == "write" and not self.writable and (user or registers.cr0 & CR0_WP):
            return "read-only"
        return ""


@dataclass(frozen=True)
class _Level:
    name: str
    shift: int
    """The lowest bit of the linear address that the index is taken from."""
    bits: int
    large: bool = False
    """An entry may map a page."""


_PT, _PD = _Level("PT", 12, 9), _Level("PD", 21, 9, large=True)
_PDPT, _PML4, _PML5 = _Level("PDPT", 30, 9, large=True), _Level("PML4", 39, 9), _Level("PML5", 48, 9)
_FOUR: Final = (_PML4, _PDPT, _PD, _PT)
_FIVE: Final = (_PML5, *_FOUR)
_PAE: Final = (_Level("PDPT", 30, 2), _PD, _PT)
_TWO: Final = (_Level("PD", 22, 10, large=True), _Level("PT", 12, 10))


def walk(
    read_int: ReadInt,
    registers: ControlRegisters,
    linear: int,
    physical_bits: int = PHYSICAL_BITS,
    gigabyte_pages: bool = True,
) -> Walk:
    """Walk the tables that *registers* name for *linear*; never raises, whatever they hold.

    *physical_bits* is what the CPU has (CPUID 80000008h): address bits above are reserved in an entry; *gigabyte_pages*
    says whether it has those (CPUID 80000001h, EDX bit 26).
    """
    long_mode = bool(registers.efer & EFER_LMA)
    linear &= 0xFFFF_FFFF_FFFF_FFFF if long_mode else 0xFFFF_FFFF
    if not registers.cr0 & CR0_PG:
        return Walk(linear, physical=linear)
    levels: tuple[_Level, ...]
    if long_mode:
        levels = _FIVE if registers.cr4 & CR4_LA57 else _FOUR
        if not is_canonical(linear, registers):
            return Walk(linear, fault="not canonical")
        table = registers.cr3 & 0x000F_FFFF_FFFF_F000
    elif registers.cr4 & CR4_PAE:
        levels = _PAE
        table = registers.cr3 & 0xFFFF_FFE0
    else:
        levels = _TWO
        table = registers.cr3 & 0xFFFF_F000
    reserved = 0x000F_FFFF_FFFF_F000 & ~((1 << physical_bits) - 1)
    return _descend(read_int, registers, linear, levels, table, reserved, gigabyte_pages)


def is_canonical(linear: int, registers: ControlRegisters) -> bool:
    """Whether the upper bits of *linear* are all as the highest that is translated (SDM volume 1, 3.3.7.1)."""
    top = linear >> (56 if registers.cr4 & CR4_LA57 else 47)
    return top == 0 or top == (1 << 64) - 1 >> (56 if registers.cr4 & CR4_LA57 else 47)


def _descend(
    read_int: ReadInt,
    registers: ControlRegisters,
    linear: int,
    levels: tuple[_Level, ...],
    table: int,
    reserved: int,
    gigabyte_pages: bool,
) -> Walk:
    size = 4 if levels is _TWO else 8
    address_mask = 0xFFFF_F000 if size == 4 else 0x000F_FFFF_FFFF_F000
    entries: list[PagingEntry] = []
    writable = user = executable = True
    for level in levels:
        index = linear >> level.shift & (1 << level.bits) - 1
        address = table + index * size
        try:
            value = read_int(address, size)
        except GuestMemoryError:
            entries.append(PagingEntry(level.name, index, address, None))
            return Walk(linear, tuple(entries), fault=f"no RAM at {address:#x}, where its {level.name} entry is")
        entries.append(PagingEntry(level.name, index, address, value))
        if not value & P:
            return Walk(linear, tuple(entries), fault="not present")
        top_of_pae = levels is _PAE and level is _PAE[0]
        maps = level.name == "PT" or (level.large and bool(value & PS) and (size == 8 or bool(registers.cr4 & CR4_PSE)))
        if maps and level.shift == 30 and not gigabyte_pages:
            return Walk(linear, tuple(entries), fault="a reserved bit is set")
        if _reserved(value, level, maps, size, top_of_pae, registers, reserved):
            return Walk(linear, tuple(entries), fault="a reserved bit is set")
        if not top_of_pae:  # which has no rights (table 4-8)
            writable = writable and bool(value & W)
            user = user and bool(value & U)
            executable = executable and not (size == 8 and value & NX and registers.efer & EFER_NXE)
        if maps:
            inside = (1 << level.shift) - 1
            base = value & address_mask & ~inside
            if size == 4 and level.shift == 22:  # PSE-36 (table 4-4): bits 20-13 are address bits 39-32
                base = value & 0xFFC0_0000 | (value >> 13 & 0xFF) << 32
            physical = base | linear & inside
            return Walk(linear, tuple(entries), physical, level.shift, "", writable, user, executable)
        table = value & address_mask
    raise AssertionError("the last level maps")


def _reserved(
    value: int, level: _Level, maps: bool, size: int, top_of_pae: bool, registers: ControlRegisters, reserved: int
) -> bool:
    """Whether the processor finds a bit set that must be 0 (4.3, table 4-4; 4.4.2; 4.5.4)."""
    if size == 4:
        return level.shift == 22 and maps and bool(value & 1 << 21)
    if not registers.efer & EFER_LMA:
        reserved |= 0x7FF0_0000_0000_0000  # ignored in long mode
    if top_of_pae:
        reserved |= NX | 0x1E6
    elif not registers.efer & EFER_NXE:
        reserved |= NX
    if level.name in ("PML4", "PML5"):
        reserved |= PS
    elif maps and level.shift > 12:
        reserved |= ((1 << level.shift) - 1) & ~0x1FFF  # bit 12 is PAT
    return bool(value & reserved)


def describe_walk(found: Walk) -> str:
    """On a line: each level's entry, then where it leads and what may be done there."""
    steps = [
        f"{entry.level}[{entry.index:x}]{'' if entry.value is None else f' {entry.value:#x}'}"
        for entry in found.entries
    ]
    if found.physical is None:
        steps.append(found.fault)
    elif not found.shift:
        steps.append(f"paging is off: GPA {found.physical:#x}")
    else:
        rights = "R" + "W" * found.writable + "X" * found.executable + (", user" if found.user else ", supervisor")
        steps.append(f"GPA {found.physical:#x} ({_SIZES[found.shift]}, {rights})")
    return " > ".join(steps)
