"""The report itself: what a person sees when a guest has died, on one screen of 40 lines and 100 columns.

First the cause in words, then the mode, the registers, the code at RIP, the way of RIP and CR2 through the page tables,
the stack, the last exits. All of it is the guest's, and may be anything: see cpu.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvm_cffi import KvmError, Regs, Sregs, Vcpu
from pyvmm.errors import printable
from pyvmm.memory import GuestMemory
from pyvmm.report.code import code_lines
from pyvmm.report.cpu import Cpu
from pyvmm.report.exits import exit_lines
from pyvmm.report.stack import stack_lines
from pyvmm.report.symbols import Symbols
from pyvmm.vcpu.paging import CR0_PG, describe_walk

COLUMNS: Final = 100
RFLAGS_NAMES: Final = (
    (0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
)  # fmt: skip
LOST: Final = "an AMD processor loses its state in a shutdown: these are the registers as KVM's INIT left them"


@dataclass(frozen=True)
class Context:
    """What a page shows besides the vCPU."""

    symbols: Symbols | None = None
    insn_bytes: bytes = b""
    """The instruction that KVM could not emulate."""
    faulted: bool = True
    """CR2 may have to do with it."""
    uarts: Sequence[int] = ()
    """Ports of the data registers of UARTs."""
    consoles: Sequence[int] = ()
    """Ports of debug consoles."""


def describe_mode(sregs: Sregs, rflags: int) -> str:
    """The CPU's mode in words (Intel SDM volume 3, 2.2)."""
    if not sregs.cr0 & 1:
        return "real mode"
    if rflags & 1 << 17:
        return "virtual-8086 mode"
    paging = "paging on" if sregs.cr0 >> 31 else "paging off"
    if sregs.efer & 1 << 10:
        mode = "64-bit long mode" if sregs.cs.l else "compatibility mode"
    else:
        mode = "32-bit protected mode" if sregs.cs.db else "16-bit protected mode"
    return f"{mode}, {paging}, CPL {sregs.ss.dpl}"


def vcpu_report(vcpu: Vcpu, memory: GuestMemory, context: Context | None = None) -> str:
    """Everything about one vCPU, several lines; call it while the vCPU is not in KVM_RUN."""
    try:
        cpu = Cpu.of(vcpu, memory)
    except KvmError as error:  # KVM refuses every call to a VM that it has given up; how it died must still be told
        return f"vCPU {vcpu.id}: {error}"
    return "\n".join(page(cpu, context))


def page(cpu: Cpu, context: Context | None = None) -> list[str]:
    """The lines about one vCPU."""
    context = context or Context()
    lines = [f"vCPU {cpu.number}: {describe_mode(cpu.sregs, cpu.regs.rflags)}", *_registers(cpu)]
    lines += code_lines(cpu, context.symbols, context.insn_bytes)
    if context.insn_bytes:
        lines.append(f"instruction that KVM could not emulate: {context.insn_bytes.hex(' ')}")
    lines += _walks(cpu, context.faulted)
    lines += stack_lines(cpu, context.symbols)
    if context.symbols is not None:
        lines.append(_source(context.symbols))
    if cpu.lost:
        lines.append(LOST)
    lines.append(f"last exits of {cpu.exits}:" if cpu.records else "no exit yet")
    lines += exit_lines(cpu.records, context.uarts, context.consoles)
    return fit(lines)


def fit(lines: Sequence[str]) -> list[str]:
    """Each fit to be printed, and no longer than the screen is wide."""
    shown = (printable(line) for line in lines)
    return [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in shown]


def wrap(text: str) -> list[str]:
    """A long line as several, the further ones indented."""
    return textwrap.wrap(printable(text), COLUMNS, subsequent_indent="    ", break_on_hyphens=False) or [""]


def _source(symbols: Symbols) -> str:
    if not symbols.shift_source:
        return f"symbols: {symbols.name}, as linked"
    shift = symbols.shift if symbols.shift < 1 << 63 else symbols.shift - (1 << 64)
    return f"symbols: {symbols.name}, shifted by {shift:#x} (from the {symbols.shift_source})"


def _walks(cpu: Cpu, faulted: bool) -> list[str]:
    lines = wrap(f"RIP {cpu.rip:#x}: {describe_walk(cpu.walk(cpu.rip))}")
    if faulted and cpu.sregs.cr0 & CR0_PG and cpu.sregs.cr2:
        lines += wrap(f"CR2 {cpu.sregs.cr2:#x}: {describe_walk(cpu.walk(cpu.sregs.cr2))}")
    return lines


def _registers(cpu: Cpu) -> list[str]:
    regs, sregs = cpu.regs, cpu.sregs
    flags = " ".join(name for bit, name in RFLAGS_NAMES if regs.rflags >> bit & 1)
    return [
        *_general(regs, cpu.bits == 64),
        f"RIP {regs.rip:016x}  RFLAGS {regs.rflags:08x} [{flags}]",
        f"CR0 {sregs.cr0:08x}  CR2 {sregs.cr2:016x}  CR3 {sregs.cr3:016x}  CR4 {sregs.cr4:08x}  EFER {sregs.efer:04x}",
        *_segments(sregs, cpu.bits == 64),
        f"GDT base {sregs.gdt.base:016x} limit {sregs.gdt.limit:04x}  "
        f"IDT base {sregs.idt.base:016x} limit {sregs.idt.limit:04x}",
    ]


def _general(regs: Regs, wide: bool) -> list[str]:
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16) if wide))
    return [
        "  ".join(f"{name.upper():>3} {getattr(regs, name):016x}" for name in names[i : i + 4])
        for i in range(0, len(names), 4)
    ]


def _segments(sregs: Sregs, wide: bool) -> list[str]:
    """In 64-bit mode most have neither base nor limit (SDM volume 3, 3.2.4)."""
    if wide:
        plain = "  ".join(
            f"{n.upper():>3} {getattr(sregs, n).selector:04x}" for n in ("cs", "ss", "ds", "es", "fs", "gs")
        )
        bases = "  ".join(f"{n.upper():>3} base {getattr(sregs, n).base:016x}" for n in ("fs", "gs", "tr"))
        return [f"{plain}   TR {sregs.tr.selector:04x}", bases]
    lines = []
    for pair in (("cs", "ss"), ("ds", "es"), ("fs", "gs"), ("tr",)):
        segments = [(name.upper(), getattr(sregs, name)) for name in pair]
        texts = (f"{n:>3} {s.selector:04x} base {s.base:08x} limit {s.limit:08x} type {s.type:x}" for n, s in segments)
        lines.append("  ".join(texts))
    return lines
