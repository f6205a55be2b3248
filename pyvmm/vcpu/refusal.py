"""Why KVM_SET_SREGS refuses a state: its EINVAL names no bit.

KVM looks at control registers by the CPUID that the guest was given (arch/x86/kvm/x86.c, kvm_is_valid_sregs). What it
minds is found by asking again without one bit at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from kvm_cffi import KvmError, Sregs, Vcpu
from pyvmm.boot.entry import EFER_LME
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, EFER_LMA

CR4_BITS: Final = {
    0: ("VME", "vme"), 1: ("PVI", "vme"), 2: ("TSD", "tsc"), 3: ("DE", "de"), 4: ("PSE", "pse"), 5: ("PAE", "pae"),
    6: ("MCE", "mce"), 7: ("PGE", "pge"), 8: ("PCE", ""), 9: ("OSFXSR", "fxsr"), 10: ("OSXMMEXCPT", "sse"),
    11: ("UMIP", "umip"), 12: ("LA57", "la57"), 13: ("VMXE", "vmx"), 14: ("SMXE", "smx"), 16: ("FSGSBASE", "fsgsbase"),
    17: ("PCIDE", "pcid"), 18: ("OSXSAVE", "xsave"), 20: ("SMEP", "smep"), 21: ("SMAP", "smap"), 22: ("PKE", "pku"),
    23: ("CET", ""), 24: ("PKS", "pks"),
}  # fmt: skip
"""By number: the bit, and the flag of CPUID, as in /proc/cpuinfo, that a guest needs for it (SDM volume 3, 2.5)."""


def why_refused(vcpu: Vcpu, sregs: Sregs) -> str:
    """In words; the state of *vcpu* may be another afterwards."""
    paging = bool(sregs.cr0 & CR0_PG)
    if paging and sregs.efer & EFER_LME and not (sregs.cr4 & CR4_PAE and sregs.efer & EFER_LMA):
        return "long mode (EFER.LME with CR0.PG) needs CR4.PAE and EFER.LMA"
    if not (paging and sregs.efer & EFER_LME) and (sregs.efer & EFER_LMA or sregs.cs.l):
        return "EFER.LMA and CS.L are of long mode, and need EFER.LME and CR0.PG"
    for bit in range(64):
        if sregs.cr4 >> bit & 1 and _accepted(vcpu, replace(sregs, cr4=sregs.cr4 & ~(1 << bit))):
            name, flag = CR4_BITS.get(bit, (f"bit {bit}", ""))
            needs = f"CPUID's {flag}, which this host has not, or --cpu has taken" if flag else "what no CPUID offers"
            return f"CR4.{name} needs {needs}"
    for bit in range(64):
        if sregs.cr0 >> bit & 1 and _accepted(vcpu, replace(sregs, cr0=sregs.cr0 & ~(1 << bit))):
            return f"CR0 {sregs.cr0:#x}: bit {bit} does not go with the others"
    if _accepted(vcpu, replace(sregs, cr3=0)):
        return f"CR3 {sregs.cr3:#x} has bits above the guest's physical addresses"
    return "APIC base, control registers and segments do not go together"


def _accepted(vcpu: Vcpu, sregs: Sregs) -> bool:
    try:
        vcpu.set_sregs(sregs)
    except KvmError:
        return False
    return True
