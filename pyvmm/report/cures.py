"""What KVM's own errors mean, and what helps: failed entries, internal errors, errors of KVM_RUN.

Source: Documentation/virt/kvm/api.rst, section 5 (KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR) and KVM_RUN; Intel SDM
volume 3, 26.3.1 (checks on guest state), 26.8 and appendix C (exit reasons), 31.4 (instruction errors); AMD APM volume
2, 15.5.1 (VMRUN's checks) and appendix C (VMEXIT_INVALID); Linux arch/x86/kvm/vmx/vmx.c, vmx_handle_exit, and
arch/x86/kvm/svm/svm.c, svm_handle_exit.
"""

from __future__ import annotations

import errno
from typing import Final

from kvm_cffi import KvmError, Regs, Sregs
from kvm_cffi.exits import FailEntry, InternalError
from pyvmm.boot.entry import EFER_LME
from pyvmm.memory import GuestMemoryError
from pyvmm.report.cause import places_touched
from pyvmm.report.code import INSN_LIMIT, disassembler
from pyvmm.report.cpu import RFLAGS_VM, Cpu
from pyvmm.report.delivery import vector_name
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, EFER_LMA, is_canonical

FAILED_ENTRY: Final = 1 << 31
"""In a VMX exit reason: the entry failed (SDM volume 3, 26.8)."""
_BASIC: Final = {33: "invalid guest state", 34: "an MSR could not be loaded", 41: "a machine check"}
_INSTRUCTION_ERRORS: Final = {7: "invalid control fields", 8: "invalid host state"}
SVM_EXIT_ERR: Final = 0xFFFFFFFF
"""VMEXIT_INVALID, of 64 bits or the lower 32."""
ASK_HOST: Final = "dmesg on the host has all of it, with kvm_intel dump_invalid_vmcs=1 or kvm_amd dump_invalid_vmcb=1"
RFLAGS_RESERVED: Final = ~0x3F7FD7 & 0xFFFF_FFFF_FFFF_FFFF
"""Bits that are 0 (SDM volume 1, 3.4.3); bit 1 is 1."""

RUN_ERRORS: Final = {
    errno.EFAULT: "KVM cannot reach a page of guest RAM on the host: with hugetlb the pool may have run out "
    "(grep HugePages /proc/meminfo), with shared RAM another process may have cut the file",
    errno.ENOMEM: "the host has no memory left for it: give the guest less RAM, or end something else",
    errno.EIO: "KVM has given this VM up, a bug of its own: dmesg on the host has its warning",
    errno.EINVAL: "KVM refuses the vCPU's state as it is: dmesg on the host may say why",
}


def failed_entry(exit: FailEntry, cpu: Cpu | None) -> str:
    """Why the processor did not enter the guest, and what of its state is invalid, as far as that can be seen."""
    reason = exit.hardware_entry_failure_reason
    if reason & 0xFFFF_FFFF == SVM_EXIT_ERR:
        what = "VMRUN found the guest's state invalid"
    elif reason & FAILED_ENTRY:
        basic = reason & 0xFFFF
        what = f"entry failed: {_BASIC.get(basic, f'basic reason {basic}')}"
    else:
        what = f"entry failed: {_INSTRUCTION_ERRORS.get(reason, f'VM-instruction error {reason}')}"
    wrong = [] if cpu is None else invalid_state(cpu.regs, cpu.sregs)
    if wrong:
        return f"{what}: {'; '.join(wrong[:3])}"
    if cpu is not None and cpu.real_mode and reason & 0xFFFF == 33:
        return f"{what}: in real mode this needs kvm_intel unrestricted_guest=1 (and ept=1); {ASK_HOST}"
    return f"{what}: {ASK_HOST}"


def invalid_state(regs: Regs, sregs: Sregs) -> list[str]:
    """What of a guest's state no processor enters with."""
    wrong = []
    long_mode = bool(sregs.efer & EFER_LMA)
    if regs.rflags & RFLAGS_RESERVED or not regs.rflags & 2:
        wrong.append(f"RFLAGS {regs.rflags:#x} has a reserved bit wrong")
    if sregs.cr0 & CR0_PG and not sregs.cr0 & 1:
        wrong.append(f"CR0 {sregs.cr0:#x} has PG without PE")
    if sregs.cr0 & 1 << 29 and not sregs.cr0 & 1 << 30:
        wrong.append(f"CR0 {sregs.cr0:#x} has NW without CD")
    if long_mode and not (sregs.cr0 & CR0_PG and sregs.cr4 & CR4_PAE):
        wrong.append("EFER.LMA without CR0.PG and CR4.PAE")
    if long_mode != bool(sregs.efer & EFER_LME and sregs.cr0 & CR0_PG):
        wrong.append(f"EFER {sregs.efer:#x}: LMA is not LME with CR0.PG")
    if long_mode and sregs.cs.l and sregs.cs.db:
        wrong.append("CS has both L and D")
    if not sregs.cs.type & 1 or (not sregs.cs.type & 8 and sregs.cs.type != 3) or not sregs.cs.s:
        wrong.append(f"CS type {sregs.cs.type:#x} is no accessed code")
    if not sregs.cs.present:
        wrong.append("CS is not present")
    if (
        sregs.tr.unusable
        or not sregs.tr.present
        or sregs.tr.s
        or sregs.tr.type not in ((11,) if long_mode else (3, 11))
    ):
        wrong.append(f"TR holds no busy TSS (type {sregs.tr.type:#x})")
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        segment = getattr(sregs, name)
        if segment.unusable:
            continue
        if (segment.limit & 0xFFF != 0xFFF and segment.g) or (segment.limit >> 20 and not segment.g):
            wrong.append(f"{name.upper()} limit {segment.limit:#x} does not go with G={segment.g}")
        if long_mode and name in ("fs", "gs", "tr", "ldt") and not is_canonical(segment.base, sregs):
            wrong.append(f"{name.upper()} base {segment.base:#x} is not canonical")
    for name in ("gdt", "idt"):
        if long_mode and not is_canonical(getattr(sregs, name).base, sregs):
            wrong.append(f"{name.upper()} base {getattr(sregs, name).base:#x} is not canonical")
    if long_mode and sregs.cs.l:
        if not is_canonical(regs.rip, sregs):
            wrong.append(f"RIP {regs.rip:#x} is not canonical")
    elif regs.rip >> 32:
        wrong.append(f"RIP {regs.rip:#x} has more than 32 bits outside 64-bit mode")
    if long_mode and regs.rflags & RFLAGS_VM:
        wrong.append("RFLAGS.VM in long mode")
    return wrong


def internal_error(exit: InternalError, cpu: Cpu | None) -> str:
    """What an internal error says of the guest."""
    match exit.suberror, exit.data:
        case 1, _:
            return _emulation(exit, cpu)
        case 2, _:
            return (
                "KVM met an exception while it emulated code of real mode: kvm_intel unrestricted_guest=1 avoids that"
            )
        case 3, (vectoring, reason, *rest):
            where = f" at GPA {rest[1]:#x}" if len(rest) > 2 else ""
            return (
                f"{vector_name(vectoring & 0xFF)} could not be delivered (exit reason {reason & 0xFFFF:#x}{where}): "
                "IDT, GDT, TSS or stack is in no RAM"
            )
        case 3, _:
            return "an event could not be delivered: IDT, GDT, TSS or stack is in no RAM"
        case 4, (reason, *_):
            return f"KVM does not know exit reason {reason:#x}: the host's kernel is older than its processor"
        case _:
            return f"KVM could not go on ({exit.name}): dmesg on the host may say why"


def _emulation(exit: InternalError, cpu: Cpu | None) -> str:
    if cpu is None:
        return "KVM could not emulate an instruction"
    found = cpu.walk(cpu.rip)
    if found.physical is None:
        return f"KVM could not fetch an instruction at {cpu.rip:#x}: {found.fault}"
    if not _is_ram(cpu, found.physical):
        return f"RIP leads to GPA {found.physical:#x}, where there is no RAM: KVM runs no code from devices"
    code = exit.insn_bytes or cpu.read(cpu.rip, INSN_LIMIT)
    what = f"KVM could not emulate the instruction at {cpu.rip:#x}, {_first(code, cpu)}"
    for linear in places_touched(cpu, code):
        physical = cpu.walk(linear).physical
        if physical is not None and not _is_ram(cpu, physical):
            return f"{what}: it touches GPA {physical:#x}, which is no RAM: use a plain mov there"
    return f"{what}: a KVM on a processor without VMX and SVM, or one in real mode, does not know all instructions"


def _is_ram(cpu: Cpu, physical: int) -> bool:
    try:
        cpu.memory.read_int(physical, 1)
    except GuestMemoryError:
        return False
    return True


def _first(code: bytes, cpu: Cpu) -> str:
    made = disassembler(cpu.bits)
    insn = next(made.disasm_lite(code, cpu.rip, 1), None) if made is not None else None
    return code[:8].hex(" ") if insn is None else f"{insn[2]} {insn[3]}".rstrip()


def run_error(error: KvmError) -> str:
    """Of KVM_RUN."""
    return RUN_ERRORS.get(error.errno or 0, "dmesg on the host may say why")
