"""How the boot CPU starts: its registers, as data, for real mode, 32-bit flat mode and 64-bit long mode.

Source: Intel SDM volume 3, 3.4.5 (segment descriptors), 4.5 (4-level paging), 9.9 (mode switching); Linux
Documentation/x86/boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol": __BOOT_CS is 0x10 and __BOOT_DS 0x18.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.lowmem import GDT_GPA, PAGE_TABLES_GPA
from pyvmm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18

CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_FIXED: Final = 1 << 1
"""The bit of RFLAGS that always reads one."""

TYPE_DATA: Final = 0x3
"""Data, read/write, accessed (SDM table 3-1)."""
TYPE_CODE: Final = 0xB
"""Code, execute/read, accessed (SDM table 3-1)."""
TYPE_LDT: Final = 0x2
TYPE_TSS_BUSY: Final = 0xB
"""System descriptor: 32-bit or 64-bit TSS, busy (SDM table 3-2)."""

PAGE_PRESENT: Final = 1 << 0
PAGE_WRITABLE: Final = 1 << 1
PAGE_SIZE_2M: Final = 1 << 7
IDENTITY_GIB: Final = 4
"""GiB that the page tables of long_mode map to themselves."""
PAGE_TABLES_LENGTH: Final = (2 + IDENTITY_GIB) * PAGE_SIZE


class SegmentRegister(NamedTuple):
    """A segment register with its hidden part, as struct kvm_segment has it; limit is in bytes, inclusive."""

    base: int
    limit: int
    selector: int
    type: int
    s: int
    """1 for code and data, 0 for a system segment."""
    dpl: int = 0
    present: int = 1
    db: int = 0
    l: int = 0  # noqa: E741 - the bit's name
    g: int = 0
    avl: int = 0

    def descriptor(self) -> int:
        """The 8-byte descriptor that would load this (SDM figure 3-8)."""
        limit = self.limit >> 12 if self.g else self.limit
        access = self.type | self.s << 4 | self.dpl << 5 | self.present << 7
        flags = self.avl | self.l << 1 | self.db << 2 | self.g << 3
        low = (limit & 0xFFFF) | (self.base & 0xFFFFFF) << 16 | access << 40
        return low | (limit >> 16 & 0xF) << 48 | flags << 52 | (self.base >> 24 & 0xFF) << 56


class DescriptorTable(NamedTuple):
    """GDTR or IDTR; limit is in bytes, inclusive."""

    base: int
    limit: int


class CpuState(NamedTuple):
    """Every register that a boot protocol speaks of."""

    rip: int
    cs: SegmentRegister
    ds: SegmentRegister
    es: SegmentRegister
    fs: SegmentRegister
    gs: SegmentRegister
    ss: SegmentRegister
    tr: SegmentRegister
    ldt: SegmentRegister
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    rflags: int = RFLAGS_FIXED
    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0


_CODE32: Final = SegmentRegister(0, 0xFFFFFFFF, BOOT_CS, TYPE_CODE, s=1, db=1, g=1)
_CODE64: Final = SegmentRegister(0, 0xFFFFFFFF, BOOT_CS, TYPE_CODE, s=1, l=1, g=1)
_DATA: Final = SegmentRegister(0, 0xFFFFFFFF, BOOT_DS, TYPE_DATA, s=1, db=1, g=1)
# The selector is null, but the hidden part has to be a busy TSS for VMX to enter the guest (SDM volume 3, 27.3.1.2).
_TR: Final = SegmentRegister(0, 0x67, 0, TYPE_TSS_BUSY, s=0)
_NO_LDT: Final = SegmentRegister(0, 0xFFFF, 0, TYPE_LDT, s=0, present=0)
_NO_IDT: Final = DescriptorTable(0, 0)


def real_mode(cs: int, ip: int, *, sp: int = 0) -> CpuState:
    """16-bit real mode at cs:ip, every data segment equal to *cs*, the interrupt table at 0, interrupts off."""
    if not (0 <= cs <= 0xFFFF and 0 <= ip <= 0xFFFF and 0 <= sp <= 0xFFFF):
        raise ValueError(f"{cs:#x}:{ip:#x} with SP {sp:#x} is no real-mode address")
    data = SegmentRegister(cs << 4, 0xFFFF, cs, TYPE_DATA, s=1)
    return CpuState(
        rip=ip,
        rsp=sp,
        cs=SegmentRegister(cs << 4, 0xFFFF, cs, TYPE_CODE, s=1),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=SegmentRegister(0, 0xFFFF, 0, TYPE_TSS_BUSY, s=0),
        ldt=SegmentRegister(0, 0xFFFF, 0, TYPE_LDT, s=0),
        gdt=DescriptorTable(0, 0xFFFF),
        idt=DescriptorTable(0, 0xFFFF),
        cr0=CR0_ET,
    )


def reset_vector() -> CpuState:
    """What a processor is after RESET (Intel SDM volume 3, table 10-1): F000:FFF0, CS based 16 bytes and 64 KiB below
    4 GiB, so that the first instruction comes from the end of the firmware's ROM. Caches are on."""
    start = real_mode(0, 0)
    cs = SegmentRegister(0xFFFF0000, 0xFFFF, 0xF000, TYPE_CODE, s=1)
    return start._replace(rip=0xFFF0, cs=cs)


def protected_mode(
    memory: GuestMemory, eip: int, *, eax: int = 0, ebx: int = 0, esi: int = 0, esp: int = 0, gdt: int = GDT_GPA
) -> CpuState:
    """32-bit flat protected mode at *eip*: CS 0x10, the rest 0x18, paging and interrupts off.

    Writes a GDT of 32 bytes to guest physical *gdt*; raises GuestMemoryError where that is no RAM.
    """
    return CpuState(
        rip=eip,
        rax=eax,
        rbx=ebx,
        rsi=esi,
        rsp=esp,
        cs=_CODE32,
        ds=_DATA,
        es=_DATA,
        fs=_DATA,
        gs=_DATA,
        ss=_DATA,
        tr=_TR,
        ldt=_NO_LDT,
        gdt=_write_gdt(memory, gdt, _CODE32),
        idt=_NO_IDT,
        cr0=CR0_PE | CR0_ET,
    )


def long_mode(
    memory: GuestMemory,
    rip: int,
    *,
    rsi: int = 0,
    rsp: int = 0,
    gdt: int = GDT_GPA,
    page_tables: int = PAGE_TABLES_GPA,
) -> CpuState:
    """64-bit long mode at *rip*: CS 0x10, the rest 0x18, the first 4 GiB mapped to themselves, interrupts off.

    Writes a GDT of 32 bytes to guest physical *gdt* and six pages of tables to *page_tables*, which is page-aligned;
    raises GuestMemoryError where that is no RAM.
    """
    _write_identity_map(memory, page_tables)
    return CpuState(
        rip=rip,
        rsi=rsi,
        rsp=rsp,
        cs=_CODE64,
        ds=_DATA,
        es=_DATA,
        fs=_DATA,
        gs=_DATA,
        ss=_DATA,
        tr=_TR,
        ldt=_NO_LDT,
        gdt=_write_gdt(memory, gdt, _CODE64),
        idt=_NO_IDT,
        cr0=CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE,
        cr3=page_tables,
        cr4=CR4_PAE,
        efer=EFER_LMA | EFER_LME,
    )


def _write_gdt(memory: GuestMemory, gpa: int, code: SegmentRegister) -> DescriptorTable:
    table = struct.pack("<4Q", 0, 0, code.descriptor(), _DATA.descriptor())
    memory.write(gpa, table)
    return DescriptorTable(gpa, len(table) - 1)


def _write_identity_map(memory: GuestMemory, gpa: int) -> None:
    """PML4, PDPT and one page directory a GiB, in pages of 2 MiB: not every CPU has pages of 1 GiB."""
    link = PAGE_PRESENT | PAGE_WRITABLE
    directories = gpa + 2 * PAGE_SIZE
    pml4 = struct.pack("<Q", (gpa + PAGE_SIZE) | link).ljust(PAGE_SIZE, b"\0")
    pdpt = struct.pack(f"<{IDENTITY_GIB}Q", *((directories + i * PAGE_SIZE) | link for i in range(IDENTITY_GIB)))
    leaf = link | PAGE_SIZE_2M
    pages = struct.pack(f"<{512 * IDENTITY_GIB}Q", *((i << 21) | leaf for i in range(512 * IDENTITY_GIB)))
    memory.write(gpa, pml4 + pdpt.ljust(PAGE_SIZE, b"\0") + pages)
