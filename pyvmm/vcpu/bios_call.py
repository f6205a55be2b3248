"""A CPU that has come to where a BIOS should be."""

from __future__ import annotations

from kvm_cffi import Vcpu
from pyvmm.boot.entry import CR0_PE, RFLAGS_FIXED
from pyvmm.boot.no_bios import BiosCall, bios_call
from pyvmm.memory import GuestMemory


def find_bios_call(vcpu: Vcpu, memory: GuestMemory) -> BiosCall | None:
    """What the guest wanted there; None where it is not there, or not in real mode. To be called in its thread."""
    sregs = vcpu.get_sregs()
    if sregs.cr0 & CR0_PE:
        return None
    regs = vcpu.get_regs()
    return bios_call(memory, rip=regs.rip, cs_base=sregs.cs.base, rax=regs.rax, rsp=regs.rsp, ss_base=sregs.ss.base)


def leave_bios_call(vcpu: Vcpu, call: BiosCall) -> None:
    """Put the registers back to what they were where *call* came from, for a report; the vCPU is not run any more."""
    if call.frame is None:
        return
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    regs.rax = regs.rax & ~0xFFFF | call.frame.ax
    regs.rsp = regs.rsp & ~0xFFFF | regs.rsp + 8 & 0xFFFF
    regs.rip = call.frame.ip
    regs.rflags = regs.rflags & ~0xFFFF | call.frame.flags | RFLAGS_FIXED
    sregs.cs.selector, sregs.cs.base = call.frame.cs, call.frame.cs << 4
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)
