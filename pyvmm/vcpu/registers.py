"""From a boot protocol's CpuState to the vCPU's registers."""

from __future__ import annotations

import errno

from kvm_cffi import Dtable, KvmError, Regs, Segment, Sregs, Vcpu
from pyvmm.boot import entry
from pyvmm.errors import UserError

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
APIC_BASE_ENABLE = 1 << 11
"""IA32_APIC_BASE, global enable (Intel SDM volume 3, 11.4.4)."""
APIC_SPIV, APIC_LVT0, APIC_LVT1 = 0xF0, 0x350, 0x360
"""Local APIC registers: spurious vector, LINT0, LINT1 (Intel SDM volume 3, table 11-1)."""
MSR_MTRRdefType = 0x2FF
MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), MSR_MTRRdefType)
"""Variable and fixed ranges and the default type (Intel SDM volume 3, 12.11.2), which KVM_GET_MSR_INDEX_LIST leaves
out."""
MTRR_ENABLED_WRITE_BACK = 0x806
"""MTRRs on, everything write-back, as firmware leaves RAM (Intel SDM volume 3, 12.11.2.1)."""


def _segment(s: entry.SegmentRegister) -> Segment:
    return Segment(
        s.base, s.limit, s.selector, s.type, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, unusable=1 - s.present
    )


def set_sregs(vcpu: Vcpu, sregs: Sregs) -> None:
    """KVM_SET_SREGS; where KVM refuses the state, a UserError that says what of it, and what to do."""
    try:
        vcpu.set_sregs(sregs)
    except KvmError as error:
        if error.errno != errno.EINVAL:
            raise
        from pyvmm.vcpu.refusal import why_refused

        raise UserError(f"vCPU {vcpu.id}: KVM refuses its registers ({error}): {why_refused(vcpu, sregs)}") from None


def hide_local_apic(vcpu: Vcpu) -> None:
    """Switch the local APIC off: CPUID's APIC bit follows IA32_APIC_BASE, whatever KVM_SET_CPUID2 said."""
    sregs = vcpu.get_sregs()
    sregs.apic_base &= ~APIC_BASE_ENABLE
    vcpu.set_sregs(sregs)


def set_cpu_state(vcpu: Vcpu, state: entry.CpuState) -> None:
    """Make *vcpu* start as *state* says; control registers that it does not name stay as after reset."""
    sregs = vcpu.get_sregs()
    for name in SEGMENTS:
        setattr(sregs, name, _segment(getattr(state, name)))
    sregs.gdt = Dtable(state.gdt.base, state.gdt.limit)
    sregs.idt = Dtable(state.idt.base, state.idt.limit)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = state.cr0, state.cr3, state.cr4, state.efer
    set_sregs(vcpu, sregs)
    vcpu.set_regs(Regs(**{name: getattr(state, name) for name in GENERAL}))


def set_mtrrs(vcpu: Vcpu) -> None:
    """MTRRs as firmware leaves them, the same on every vCPU."""
    try:
        vcpu.set_msrs({MSR_MTRRdefType: MTRR_ENABLED_WRITE_BACK})
    except KvmError:  # software-backed KVM has no MTRRs; nothing there looks at them either
        pass


def virtual_wire(lapic: bytes) -> bytes:
    """The boot CPU's local APIC as firmware leaves it: enabled, LINT0 takes the PIC (ExtINT), LINT1 the NMI.

    Source: Intel MultiProcessor Specification 1.4, 3.6.2.2 (virtual wire mode).
    """
    state = bytearray(lapic)
    for register, value in ((APIC_SPIV, 0x1FF), (APIC_LVT0, 0x700), (APIC_LVT1, 0x400)):
        state[register : register + 4] = value.to_bytes(4, "little")
    return bytes(state)
