"""How far a Linux guest runs from where it was linked (KASLR): from its interrupt descriptor table, or its VMCOREINFO.

Source: Linux arch/x86/kernel/idt.c (the gates of exceptions lead to asm_exc_*; before 5.8 to divide_error and its
like); Documentation/admin-guide/kdump/vmcoreinfo.rst (KERNELOFFSET); Intel SDM volume 3, 6.10 and 6.14.1 (gates).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from pyvmm.memory import GuestMemory
from pyvmm.report import vmcoreinfo
from pyvmm.report.cpu import Cpu
from pyvmm.report.symbols import Symbols
from pyvmm.units import PAGE_SIZE
from pyvmm.vcpu.paging import EFER_LMA

HANDLERS: Final = {
    0: ("asm_exc_divide_error", "divide_error"),
    4: ("asm_exc_overflow", "overflow"),
    5: ("asm_exc_bounds", "bounds"),
    6: ("asm_exc_invalid_op", "invalid_op"),
    13: ("asm_exc_general_protection", "general_protection"),
    14: ("asm_exc_page_fault", "page_fault"),
}
"""By vector, what Linux calls the code that a gate leads to."""
AGREE: Final = 2
"""So many gates must say the same."""
_OFFSET: Final = re.compile(rb"\nKERNELOFFSET=([0-9a-f]{1,16})\n")


def find_shift(cpus: Sequence[Cpu], memory: GuestMemory, symbols: Symbols) -> None:
    """Set shift and shift_source of *symbols*, where the guest is a Linux that tells of it."""
    if not any(symbols.linked(name) is not None for names in HANDLERS.values() for name in names):
        return
    for cpu in cpus:
        shift = shift_by_idt(cpu, symbols)
        if shift is not None:
            symbols.shift, symbols.shift_source = shift, "IDT"
            return
    offset = vmcoreinfo_offset(memory)
    if offset is not None:
        symbols.shift, symbols.shift_source = offset, "VMCOREINFO"


def gate_handler(cpu: Cpu, vector: int) -> int | None:
    """Where the gate of *vector* leads, present or not; None where it cannot be read."""
    size = 16 if cpu.sregs.efer & EFER_LMA else 8
    if (vector + 1) * size - 1 > cpu.sregs.idt.limit:
        return None
    gate = cpu.read(cpu.sregs.idt.base + vector * size, size)
    if len(gate) < size:
        return None
    low, high = int.from_bytes(gate[0:2], "little"), int.from_bytes(gate[6:8], "little")
    return low | high << 16 | int.from_bytes(gate[8:12], "little") << 32


def shift_by_idt(cpu: Cpu, symbols: Symbols) -> int | None:
    """What most of the gates say; None where no two agree on whole pages."""
    votes: Counter[int] = Counter()
    for vector, names in HANDLERS.items():
        handler = gate_handler(cpu, vector)
        for name in names:
            linked = symbols.linked(name)
            if handler and linked is not None:
                votes[handler - linked & 0xFFFF_FFFF_FFFF_FFFF] += 1
                break
    for shift, count in votes.most_common(1):
        if count >= AGREE and shift % PAGE_SIZE == 0:
            return shift
    return None


def vmcoreinfo_offset(memory: GuestMemory) -> int | None:
    """KERNELOFFSET of VMCOREINFO; None where there is none."""
    for text in vmcoreinfo.candidates(memory):
        found = _OFFSET.search(text)
        if found:
            return int(found[1], 16)
    return None
