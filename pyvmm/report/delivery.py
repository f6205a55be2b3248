"""Why an exception did not reach its handler: the IDT, the gate, the handler's code, the stack.

Source: Intel SDM volume 3, 6.10 to 6.14 (IDT and gates in protected and 64-bit mode), 20.1.4 (vectors in real mode).
"""

from __future__ import annotations

from typing import Final

from pyvmm.report.cpu import RFLAGS_VM, Cpu
from pyvmm.report.kaslr import gate_handler
from pyvmm.vcpu.paging import EFER_LMA

DE, DB, BP, UD, NM, SS, GP, PF = 0, 1, 3, 6, 7, 12, 13, 14
NAMES: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP",
    12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip
"""Of the vectors (SDM volume 3, table 6-1)."""


def vector_name(vector: int) -> str:
    return NAMES.get(vector, f"vector {vector:#x}")


def undeliverable(cpu: Cpu, vector: int | None) -> str:
    """Why the exception did not reach a handler; empty where nothing is seen."""
    if cpu.real_mode or cpu.regs.rflags & RFLAGS_VM:
        return _no_vector(cpu, vector)
    idt = cpu.sregs.idt
    long_mode = bool(cpu.sregs.efer & EFER_LMA)
    size = 16 if long_mode else 8
    if idt.limit < size - 1:
        return "no IDT"
    if vector is not None and (vector + 1) * size - 1 > idt.limit:
        return f"the IDT (limit {idt.limit:#x}) ends before {vector_name(vector)}"
    if idt.base & cpu.mask != idt.base or not cpu.read(idt.base, 1):
        return f"the IDT at {idt.base:#x} is {cpu.walk(idt.base).fault or 'in no RAM'}"
    if vector is None:
        return ""
    gate = cpu.read(idt.base + vector * size, size)
    if len(gate) < size:
        return f"its gate at {idt.base + vector * size:#x} is {cpu.walk(idt.base + vector * size).fault or 'in no RAM'}"
    if not any(cpu.read(idt.base, min(idt.limit + 1, 32 * size))):
        return f"no IDT: at {idt.base:#x} are zeroes"
    kind = gate[5] & 0x1F
    if not gate[5] & 0x80:
        return f"no gate for {vector_name(vector)} in the IDT"
    if kind not in ((0xE, 0xF) if long_mode else (5, 6, 7, 0xE, 0xF)):
        return f"the gate for {vector_name(vector)} in the IDT is of type {kind:#x}"
    handler = gate_handler(cpu, vector) or 0
    if kind != 5:
        fault = cpu.walk(handler).fault
        if fault:
            return f"the handler of {vector_name(vector)}, {handler:#x}, is {fault}"
        if not cpu.executes(handler):
            return f"the handler of {vector_name(vector)}, {handler:#x}, is in no RAM that can be executed"
    selector = int.from_bytes(gate[2:4], "little")
    if selector & ~3 == 0 or (not selector & 4 and (selector | 7) > cpu.sregs.gdt.limit):
        beyond = f"beyond the GDT (limit {cpu.sregs.gdt.limit:#x})" if selector & ~3 else "none"
        return f"the gate for {vector_name(vector)} has selector {selector:#x}, {beyond}"
    if cpu.cpl < 3 and not (long_mode and gate[4] & 7):
        top = cpu.rsp - cpu.word & cpu.mask
        refused = cpu.walk(top).refuses("write", cpu.sregs, False)
        if refused:
            return f"the stack at {cpu.rsp:#x} is {refused}"
    return ""


def _no_vector(cpu: Cpu, vector: int | None) -> str:
    """In real mode a vector is 4 bytes, and all of it is valid: only its place may not be."""
    idt = cpu.sregs.idt
    if idt.limit < 3:
        return f"no interrupt vectors (IDT limit {idt.limit:#x})"
    if vector is not None and vector * 4 + 3 > idt.limit:
        return f"the interrupt vectors (IDT limit {idt.limit:#x}) end before {vector_name(vector)}"
    return ""
