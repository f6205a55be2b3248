"""What CPUID tells each vCPU: the host's features as the user wants them, with the guest's own topology.

N vCPUs are one package of N cores with one thread each; the vCPU's number is its APIC id.
Sources: Intel SDM volume 2, CPUID (leaves 00H, 01H, 04H, 0BH, 0DH, 1FH); AMD APM volume 3, appendix E (8000_0000H,
8000_0001H, 8000_0008H, 8000_001DH, 8000_001EH); Documentation/virt/kvm/x86/cpuid.rst (4000_0001H) and api.rst
(KVM_GET_SUPPORTED_CPUID: 8000_0008H.EAX[23:16]).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from kvm_cffi import CpuidEntry, constants
from pyvmm.config import ConfigError
from pyvmm.vcpu.dependencies import closed, missing
from pyvmm.vcpu.features import FEATURES, clear, present
from pyvmm.vcpu.model import HOST, CpuModel, names

ECX1_TSC_DEADLINE: Final = 1 << 24
ECX1_OSXSAVE: Final = 1 << 27
ECX1_HYPERVISOR: Final = 1 << 31
EDX1_APIC: Final = 1 << 9
EDX1_HTT: Final = 1 << 28
ECX8_1_CMP_LEGACY: Final = 1 << 1
EDX8_1_APIC: Final = 1 << 9
EAXD_1_XSAVEC: Final = 1 << 1
EAXD_1_XSAVES: Final = 1 << 3
XSAVE_LEGACY_SIZE: Final = 576
"""Bytes of the XSAVE area's legacy region and header (Intel SDM volume 1, 13.4)."""
DEFAULT_PHYS_BITS: Final = 36
"""Where there is no leaf 8000_0008H."""
HYPERVISOR_LEAVES: Final = range(0x40000000, 0x50000000)
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


def phys_bits(entries: Iterable[CpuidEntry]) -> int:
    """How many bits the physical addresses have that a guest can use: MAXPHYADDR, or fewer where KVM maps only so many
    (the guest's address size, 8000_0008H.EAX[23:16])."""
    for entry in entries:
        if entry.function == 0x80000008:
            return min(entry.eax & 0xFF or DEFAULT_PHYS_BITS, entry.eax >> 16 & 0xFF or 0xFF)
    return DEFAULT_PHYS_BITS


def guest_cpuid(
    supported: Iterable[CpuidEntry], cpus: int, *, local_apic: bool, tsc_deadline: bool, model: CpuModel = HOST
) -> list[CpuidEntry]:
    """The CPUID table of the first of *cpus* vCPUs: *model* made of what this host's KVM supports.

    No feature is there without what it depends on. Without *local_apic* (PIC and PIT in user space) everything that
    needs one is hidden. Raises ConfigError where *model* asks for what there is not.
    """
    host = list(supported)
    entries = [replace(e) for e in host if e.function not in (0xB, 0x1F, 0x8000001E)]
    for entry in entries:
        if entry.function == 1:
            entry.ebx = (entry.ebx & 0x0000FFFF) | min(1 << _bits(cpus), 255) << 16
            entry.ecx = (entry.ecx | ECX1_HYPERVISOR) & ~(ECX1_OSXSAVE | ECX1_TSC_DEADLINE)
            entry.ecx |= ECX1_TSC_DEADLINE if tsc_deadline else 0
            entry.edx = entry.edx | EDX1_HTT if cpus > 1 else entry.edx & ~EDX1_HTT
            entry.edx = entry.edx | EDX1_APIC if local_apic else entry.edx & ~EDX1_APIC
        elif entry.function in (4, 0x8000001D) and entry.eax & 0x1F:
            level = entry.eax >> 5 & 7
            sharing = cpus if level >= 3 else 1
            entry.eax = (entry.eax & ~(0xFFF << 14)) | ((1 << _bits(sharing)) - 1) << 14
            if entry.function == 4:
                entry.eax = (entry.eax & ~(0x3F << 26)) | (min((1 << _bits(cpus)) - 1, 0x3F) << 26)
        elif entry.function == 0x80000001:
            entry.ecx = entry.ecx | ECX8_1_CMP_LEGACY if cpus > 1 else entry.ecx & ~ECX8_1_CMP_LEGACY
            if not local_apic:
                entry.edx &= ~EDX8_1_APIC
        elif entry.function == 0x80000008:
            entry.ecx = (entry.ecx & ~0xF0FF) | min(cpus - 1, 255) | _bits(cpus) << 12
        elif entry.function == KVM_CPUID_FEATURES and not local_apic:
            entry.eax &= ~NEED_LOCAL_APIC
    features = _choose_features(entries, host, model)
    if "hypervisor" not in features:
        entries = [e for e in entries if e.function not in HYPERVISOR_LEAVES]
    _fit_xsave_area(entries)
    _set_phys_bits(entries, model)
    _set_vendor(entries, model)
    return entries + _topology(entries, cpus, "topoext" in features)


def with_apic_id(entries: Iterable[CpuidEntry], apic_id: int) -> list[CpuidEntry]:
    """The table of guest_cpuid() as the vCPU *apic_id* has it."""
    table = [replace(e) for e in entries]
    for entry in table:
        if entry.function == 1:
            entry.ebx = (entry.ebx & 0x00FFFFFF) | (apic_id & 0xFF) << 24
        elif entry.function in (0xB, 0x1F):
            entry.edx = apic_id
        elif entry.function == 0x8000001E:
            entry.eax, entry.ebx = apic_id, apic_id & 0xFF
    return table


def _choose_features(entries: list[CpuidEntry], host: list[CpuidEntry], model: CpuModel) -> set[str]:
    """Leave in *entries* what *model* wants, and of that what can be together; the features left."""
    offered = present(entries)
    removed = {name for flag in model.remove for name in names(flag)}
    kept = closed(offered - removed)
    for flag in model.add:
        if kept.isdisjoint(names(flag)):
            raise ConfigError(_why_not(flag, offered, removed, kept, present(host)), {"cpu": model.text})
    clear(entries, FEATURES.keys() - kept)
    return kept


def _why_not(flag: str, offered: set[str], removed: set[str], kept: set[str], host: set[str]) -> str:
    """What *flag* lacks in the end: what it needs, or what that needs."""
    name = next((name for name in names(flag) if name in offered), flag)
    seen: set[str] = set()
    while name in offered - removed - seen and (needs := missing(name, kept)):
        seen.add(name)
        name = needs[0]
    why = "this machine does not have" if name in host else "this host's KVM does not support"
    if name in removed:
        why = f"-{name} takes away"
    return f"{flag} needs {name}, which {why}" if seen else f"{why} {flag}"


def _fit_xsave_area(entries: list[CpuidEntry]) -> None:
    """Make leaf 0DH speak of the components that are left; EBX of its first two is KVM's to keep."""
    leaves = {e.index: e for e in entries if e.function == 0xD}
    if not leaves or not leaves[0].eax:
        return
    xcr0 = leaves[0].eax | leaves[0].edx << 32
    xss = 0
    if (one := leaves.get(1)) is not None:
        if not one.eax & EAXD_1_XSAVES:
            one.ecx = one.edx = 0
        if not one.eax & (EAXD_1_XSAVEC | EAXD_1_XSAVES):
            one.ebx = 0
        xss = one.ecx | one.edx << 32
    size = XSAVE_LEGACY_SIZE
    for component, leaf in leaves.items():
        if component >= 2 and xcr0 >> component & 1:
            size = max(size, leaf.ebx + leaf.eax)
        elif component >= 2 and not xss >> component & 1:
            leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0
    leaves[0].ebx = leaves[0].ecx = size


def _set_phys_bits(entries: list[CpuidEntry], model: CpuModel) -> None:
    if model.phys_bits is None:
        return
    bits = model.address_bits(phys_bits(entries))
    for entry in entries:
        if entry.function == 0x80000008:
            entry.eax = (entry.eax & ~0xFF00FF) | bits | (bits << 16 if entry.eax >> 16 & 0xFF else 0)


def _set_vendor(entries: list[CpuidEntry], model: CpuModel) -> None:
    """Leaf 8000_0000H repeats the vendor, but on Intel's processors."""
    if model.vendor is None:
        return
    ebx, edx, ecx = (int.from_bytes(model.vendor[at : at + 4], "little") for at in (0, 4, 8))
    for entry in entries:
        if entry.function in (0, 0x80000000):
            entry.ebx, entry.edx, entry.ecx = ebx, edx, ecx
            if entry.function and model.vendor == b"GenuineIntel":
                entry.ebx = entry.edx = entry.ecx = 0


def _topology(entries: list[CpuidEntry], cpus: int, topoext: bool) -> list[CpuidEntry]:
    """The leaves that say nothing else."""
    added = []
    if topoext:
        added.append(CpuidEntry(0x8000001E))
    highest = next((e for e in entries if e.function == 0), None)
    if highest is not None and highest.eax >= 0xB:
        flag = constants.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        levels = ((0, SMT_LEVEL, 1, 0), (1, CORE_LEVEL, cpus, _bits(cpus)), (2, 0, 0, 0))
        functions = [0xB] + ([0x1F] if highest.eax >= 0x1F else [])
        for function in functions:
            for index, kind, processors, shift in levels:
                added.append(CpuidEntry(function, index, flag, shift, processors, index | kind << 8))
    return added
