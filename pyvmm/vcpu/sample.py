"""Where a vCPU is, at a look: for who wants to know what a guest does that says nothing."""

from __future__ import annotations

from typing import NamedTuple

from kvm_cffi import Regs, Sregs, Vcpu
from pyvmm.vcpu.paging import EFER_LMA


class Sample(NamedTuple):
    """The linear address of a vCPU's next instruction, and how many exits it had by then."""

    rip: int
    exits: int


def linear_rip(regs: Regs, sregs: Sregs) -> int:
    """Where RIP leads, by CS (Intel SDM volume 3, 3.2.4 and 3.4)."""
    if sregs.efer & EFER_LMA and sregs.cs.l:
        return regs.rip
    return sregs.cs.base + regs.rip & (0xFFFF_FFFF_FFFF_FFFF if sregs.efer & EFER_LMA else 0xFFFF_FFFF)


def take_sample(vcpu: Vcpu) -> Sample:
    """To be called in the vCPU's thread, outside KVM_RUN; raises KvmError."""
    return Sample(linear_rip(vcpu.get_regs(), vcpu.get_sregs()), vcpu.exits)
