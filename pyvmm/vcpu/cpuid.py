"""What CPUID tells each vCPU: the host's features, with the guest's own topology.

N vCPUs are one package of N cores with one thread each; the vCPU's number is its APIC id.
Sources: Intel SDM volume 2, CPUID (leaves 01H, 04H, 0BH, 1FH); AMD APM volume 3, appendix E (8000_0001H, 8000_0008H,
8000_001DH, 8000_001EH); Documentation/virt/kvm/x86/cpuid.rst (4000_0001H).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from kvm_cffi import CpuidEntry, constants

ECX1_X2APIC: Final = 1 << 21
ECX1_TSC_DEADLINE: Final = 1 << 24
ECX1_OSXSAVE: Final = 1 << 27
ECX1_HYPERVISOR: Final = 1 << 31
EDX1_APIC: Final = 1 << 9
EDX1_HTT: Final = 1 << 28
ECX8_1_CMP_LEGACY: Final = 1 << 1
ECX8_1_TOPOEXT: Final = 1 << 22
EDX8_1_APIC: Final = 1 << 9
KVM_CPUID_FEATURES: Final = 0x40000001
KVM_FEATURE_ASYNC_PF: Final = 1 << 4
KVM_FEATURE_STEAL_TIME: Final = 1 << 5
KVM_FEATURE_PV_EOI: Final = 1 << 6
KVM_FEATURE_PV_UNHALT: Final = 1 << 7
KVM_FEATURE_ASYNC_PF_VMEXIT: Final = 1 << 10
KVM_FEATURE_PV_SEND_IPI: Final = 1 << 11
KVM_FEATURE_ASYNC_PF_INT: Final = 1 << 14
KVM_FEATURE_MSI_EXT_DEST_ID: Final = 1 << 15
NEED_LOCAL_APIC: Final = (
    KVM_FEATURE_ASYNC_PF
    | KVM_FEATURE_PV_EOI
    | KVM_FEATURE_PV_UNHALT
    | KVM_FEATURE_ASYNC_PF_VMEXIT
    | KVM_FEATURE_PV_SEND_IPI
    | KVM_FEATURE_ASYNC_PF_INT
    | KVM_FEATURE_MSI_EXT_DEST_ID
)
SMT_LEVEL, CORE_LEVEL = 1, 2


def _bits(count: int) -> int:
    """How many APIC id bits number *count* things."""
    return (count - 1).bit_length()


def guest_cpuid(
    supported: Iterable[CpuidEntry], apic_id: int, cpus: int, *, local_apic: bool, tsc_deadline: bool
) -> list[CpuidEntry]:
    """The CPUID table of the vCPU *apic_id* of *cpus*, from what the host supports.

    Without *local_apic* (PIC and PIT in user space) everything that needs one is hidden.
    """
    entries = [replace(e) for e in supported if e.function not in (0xB, 0x1F, 0x8000001E)]
    topoext = False
    for entry in entries:
        if entry.function == 1:
            entry.ebx = (entry.ebx & 0x0000FFFF) | (min(1 << _bits(cpus), 255) << 16) | (apic_id & 0xFF) << 24
            entry.ecx = (entry.ecx | ECX1_HYPERVISOR) & ~ECX1_OSXSAVE
            entry.edx = entry.edx | EDX1_HTT if cpus > 1 else entry.edx & ~EDX1_HTT
            entry.ecx &= ~ECX1_TSC_DEADLINE
            if local_apic:
                entry.edx |= EDX1_APIC
                if tsc_deadline:
                    entry.ecx |= ECX1_TSC_DEADLINE
            else:
                entry.edx &= ~EDX1_APIC
                entry.ecx &= ~ECX1_X2APIC
        elif entry.function in (4, 0x8000001D) and entry.eax & 0x1F:
            level = entry.eax >> 5 & 7
            sharing = cpus if level >= 3 else 1
            entry.eax = (entry.eax & ~(0xFFF << 14)) | ((1 << _bits(sharing)) - 1) << 14
            if entry.function == 4:
                entry.eax = (entry.eax & ~(0x3F << 26)) | (min((1 << _bits(cpus)) - 1, 0x3F) << 26)
        elif entry.function == 0x80000001:
            topoext = bool(entry.ecx & ECX8_1_TOPOEXT)
            entry.ecx = entry.ecx | ECX8_1_CMP_LEGACY if cpus > 1 else entry.ecx & ~ECX8_1_CMP_LEGACY
            if not local_apic:
                entry.edx &= ~EDX8_1_APIC
        elif entry.function == 0x80000008:
            entry.ecx = (entry.ecx & ~0xF0FF) | min(cpus - 1, 255) | _bits(cpus) << 12
        elif entry.function == KVM_CPUID_FEATURES and not local_apic:
            entry.eax &= ~NEED_LOCAL_APIC
    if topoext:
        entries.append(CpuidEntry(0x8000001E, eax=apic_id, ebx=apic_id & 0xFF, ecx=0))
    highest = next((e for e in entries if e.function == 0), None)
    if highest is not None and highest.eax >= 0xB:
        flag = constants.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        levels = ((0, SMT_LEVEL, 1, 0), (1, CORE_LEVEL, cpus, _bits(cpus)), (2, 0, 0, 0))
        functions = [0xB] + ([0x1F] if highest.eax >= 0x1F else [])
        for function in functions:
            for index, kind, processors, shift in levels:
                entries.append(CpuidEntry(function, index, flag, shift, processors, index | kind << 8, apic_id))
    return entries
