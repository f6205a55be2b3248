"""A guest's RAM with page tables in it, and a vCPU that uses them, for what looks at dead guests."""

from __future__ import annotations

import struct
from typing import Any

from kvm_cffi import Dtable, ExitRecord, Regs, Segment, Sregs
from pyvmm.memory import GuestMemory
from pyvmm.report.cpu import Cpu
from pyvmm.units import MIB
from pyvmm.vcpu.paging import CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, EFER_NXE, P, U, W

PE, WP, LME = 1, 1 << 16, 1 << 8
SIZE = 2 * MIB
TABLES = 0x100000
"""Where page tables are made, upwards."""
CODE, DATA, STACK = 0x10000, 0x20000, 0x30000


class Paged:
    """64-bit long mode with 4 or 5 levels of page tables; map() adds to them."""

    def __init__(self, levels: int = 4) -> None:
        self.memory = GuestMemory.of_size(SIZE)
        self.levels = levels
        self._next = TABLES + 0x1000
        self.cr3 = TABLES
        self.sregs = Sregs(
            cr0=CR0_PG | PE | WP,
            cr3=self.cr3,
            cr4=CR4_PAE | (CR4_LA57 if levels == 5 else 0),
            efer=LME | EFER_LMA | EFER_NXE,
            cs=Segment(selector=8, type=11, present=1, s=1, l=1, g=1, limit=0xFFFFFFFF),
            ss=Segment(selector=16, type=3, present=1, s=1, db=1, g=1, limit=0xFFFFFFFF),
            tr=Segment(selector=24, type=11, present=1, limit=0x67),
            gdt=Dtable(0, 0x1F),
        )
        self.regs = Regs(rip=CODE, rsp=STACK, rflags=2)

    def map(self, linear: int, physical: int, flags: int = P | W | U, shift: int = 12) -> None:
        """One page of 2**shift bytes."""
        table = self.cr3
        for level in range(self.levels - 1, -1, -1):
            at = table + 8 * (linear >> 12 + 9 * level & 511)
            if shift == 12 + 9 * level:
                self.memory.write_int(at, 8, physical | flags | (1 << 7 if level else 0))
                return
            entry = self.memory.read_int(at, 8)
            if not entry & P:
                entry = self._next | P | W | U
                self._next += 0x1000
                self.memory.write_int(at, 8, entry)
            table = entry & 0x000F_FFFF_FFFF_F000

    def code(self, code: bytes, at: int = CODE) -> Paged:
        """Code at RIP, with its page, and a page of stack below and above RSP."""
        self.regs.rip = at
        self.map(at & ~0xFFF, CODE)
        self.map(STACK, STACK)
        self.map(STACK - 0x1000, STACK - 0x1000)
        self.memory.write(CODE + at % 0x1000, code)
        return self

    def gate(
        self, vector: int, handler: int, *, selector: int = 8, kind: int = 0x8E, idt: int = DATA, limit: int = 0xFFF
    ) -> None:
        """A gate of an IDT at *idt*, of all 256 vectors where *limit* does not say less."""
        self.map(idt, DATA)
        self.sregs.idt = Dtable(idt, limit)
        gate = struct.pack("<HHBBHII", handler & 0xFFFF, selector, 0, kind, handler >> 16 & 0xFFFF, handler >> 32, 0)
        self.memory.write(DATA + 16 * vector, gate)

    def cpu(self, records: tuple[ExitRecord, ...] = (), **changes: Any) -> Cpu:
        return Cpu(0, self.regs, self.sregs, self.memory, records=records, exits=len(records), **changes)


def real_cpu(code: bytes = b"\xf4", **regs: int) -> Cpu:
    """A vCPU in real mode with *code* at 0:7c00."""
    memory = GuestMemory.of_size(0x10000)
    memory.write(0x7C00, code)
    segment = Segment(limit=0xFFFF, present=1, s=1, type=3)
    sregs = Sregs(cs=segment, ss=segment, ds=segment, es=segment, fs=segment, gs=segment, idt=Dtable(0, 0x3FF))
    return Cpu(0, Regs(**{"rip": 0x7C00, "rsp": 0x7C00, "rflags": 2, **regs}), sregs, memory)


def protected_cpu(code: bytes = b"\xf4", **regs: int) -> Cpu:
    """A vCPU in flat 32-bit protected mode without paging, with *code* at 7c00."""
    memory = GuestMemory.of_size(0x10000)
    memory.write(0x7C00, code)
    flat = {"limit": 0xFFFFFFFF, "present": 1, "s": 1, "g": 1, "db": 1}
    data = Segment(type=3, selector=16, **flat)
    sregs = Sregs(
        cr0=1, cs=Segment(type=11, selector=8, **flat), ss=data, ds=data, es=data, fs=data, gs=data, gdt=Dtable(0, 0x1F)
    )
    return Cpu(0, Regs(**{"rip": 0x7C00, "rsp": 0x7C00, "rflags": 2, **regs}), sregs, memory)
