"""A vCPU's whole state, saved and put back: for a reset, which is going back to how it was created, and for snapshots.

The order is that of Firecracker's and Cloud Hypervisor's, each step for a reason: saving asks for MP_STATE first, which
may change the local APIC; KVM_SET_REGS clears pending exceptions, so events come last; KVM_SET_SREGS sets the APIC base
and with it the APIC's mode, so it comes before KVM_SET_LAPIC; without an APIC KVM drops a TSC deadline, so MSRs come
after both, the TSC before its deadline. Nested state comes after KVM_SET_SREGS, which turns SVM or VMX on
(Documentation/virt/kvm/api.rst).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from kvm_cffi import Debugregs, KvmError, Regs, Sregs, Vcpu, VcpuEvents
from kvm_cffi.constants import (
    KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM,
)
from pyvmm.vcpu.registers import set_sregs

MSR_IA32_TSC: Final = 0x10
MSR_IA32_TSC_DEADLINE: Final = 0x6E0
MSR_IA32_APICBASE: Final = 0x1B
"""Set through KVM_SET_SREGS alone."""
_EVENTS: Final = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW

T = TypeVar("T")


@dataclass
class VcpuState:
    """What KVM keeps of one vCPU; None where this host's KVM has no such state (no in-kernel local APIC, no XSAVE)."""

    mp_state: int | None
    regs: Regs
    sregs: Sregs
    xsave: bytes | None
    xcrs: bytes | None
    debugregs: Debugregs | None
    lapic: bytes | None
    msrs: dict[int, int]
    events: VcpuEvents
    nested: bytes | None = None
    """What is of guests of the guest; None where the host lets it have none."""
    halted: bool = False
    """It sleeps in user space after KVM_EXIT_HLT, there being no local APIC in the kernel."""
    vector: int | None = None
    """Acknowledged at a PIC in user space, and not yet taken by KVM."""


def _where_there(get: Callable[[], T]) -> T | None:
    try:
        return get()
    except KvmError:
        return None


def save_msrs(vcpu: Vcpu, indices: Iterable[int]) -> dict[int, int]:
    """The MSRs of *indices* that KVM gives; one that it refuses is left out, not those after it."""
    wanted = [index for index in indices if index != MSR_IA32_APICBASE]
    saved: dict[int, int] = {}
    while wanted:
        got = vcpu.get_msrs(wanted)
        saved |= got
        wanted = wanted[len(got) + 1 :]
    return saved


def load_msrs(vcpu: Vcpu, msrs: dict[int, int]) -> None:
    """Put MSRs back, the TSC deadline after all others; one that KVM refuses (read-only on this host) is left out."""
    ordered = sorted(msrs.items(), key=lambda msr: (msr[0] == MSR_IA32_TSC_DEADLINE, msr[0]))
    while ordered:
        done = vcpu.try_set_msrs(dict(ordered))
        ordered = ordered[done + 1 :]


def save(vcpu: Vcpu, msr_indices: Iterable[int], nested_size: int = 0) -> VcpuState:
    """Everything; only while the vCPU stands still with its last exit completed. *nested_size* is what
    KVM_CAP_NESTED_STATE answers."""
    mp_state = _where_there(vcpu.get_mp_state)
    return VcpuState(
        mp_state=mp_state,
        regs=vcpu.get_regs(),
        sregs=vcpu.get_sregs(),
        xsave=_where_there(vcpu.get_xsave),
        xcrs=_where_there(vcpu.get_xcrs),
        debugregs=_where_there(vcpu.get_debugregs),
        lapic=_where_there(vcpu.get_lapic),
        msrs=save_msrs(vcpu, msr_indices),
        events=vcpu.get_vcpu_events(),
        nested=_where_there(lambda: vcpu.get_nested_state(nested_size)) if nested_size else None,
    )


def load(vcpu: Vcpu, state: VcpuState) -> None:
    """Put everything back; only while the vCPU stands still."""
    if state.nested is not None:
        vcpu.leave_nested(state.nested)  # or the registers would be those of the guest's guest
    if state.mp_state is not None:
        vcpu.get_mp_state()  # takes an INIT or SIPI that waits, which would undo all this at the next KVM_RUN
        vcpu.set_mp_state(state.mp_state)
    vcpu.set_regs(state.regs)
    set_sregs(vcpu, state.sregs)
    if state.nested is not None:
        vcpu.set_nested_state(state.nested)
    if state.xsave is not None:
        vcpu.set_xsave(state.xsave)
    if state.xcrs:
        vcpu.set_xcrs(state.xcrs)
    if state.debugregs is not None:
        vcpu.set_debugregs(state.debugregs)
    if state.lapic is not None:
        vcpu.set_lapic(state.lapic)
    load_msrs(vcpu, state.msrs)
    flags = _EVENTS | state.events.flags & KVM_VCPUEVENT_VALID_SMM
    vcpu.set_vcpu_events(replace(state.events, flags=flags))
