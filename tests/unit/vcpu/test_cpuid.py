"""The CPUID of each vCPU: its topology, and what the machine adds and hides."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import CpuidEntry, constants
from pyvmm.vcpu.cpuid import guest_cpuid, with_apic_id

INTEL = [
    CpuidEntry(0, eax=0x1F),
    CpuidEntry(1, ebx=0x00800800, ecx=1 << 21 | 1 << 27, edx=0x0FFFFFFF),
    CpuidEntry(4, 0, 1, eax=0xFC01C121),
    CpuidEntry(4, 3, 1, eax=0xFC0FC163),
    CpuidEntry(4, 4, 1, eax=0),
    CpuidEntry(7, ebx=5),
    CpuidEntry(0xB, 0, 1, eax=1, ebx=2, ecx=0x100, edx=77),
    CpuidEntry(0x1F, 0, 1, eax=1, ebx=2, ecx=0x100, edx=77),
    CpuidEntry(0x40000001, eax=0xFFFFFFFF),
    CpuidEntry(0x80000001, ecx=1, edx=1 << 29 | 1 << 9),
    CpuidEntry(0x80000008, ecx=0xF0FF),
]
AMD = [
    CpuidEntry(0, eax=0xD),
    CpuidEntry(1, ebx=0x00800800, edx=1 << 5),
    CpuidEntry(0x80000001, ecx=1 << 22, edx=1 << 9),
    CpuidEntry(0x80000008, eax=0x3030, ecx=0xABF0FF),
    CpuidEntry(0x8000001D, 0, 1, eax=0x3FFC121),
    CpuidEntry(0x8000001D, 3, 1, eax=0x3FFC163),
    CpuidEntry(0x8000001E, eax=9, ebx=0x900),
]


def table(
    entries: list[CpuidEntry], apic_id: int, cpus: int, local_apic: bool = True, tsc_deadline: bool = True
) -> dict[tuple[int, int], CpuidEntry]:
    made = with_apic_id(guest_cpuid(entries, cpus, local_apic=local_apic, tsc_deadline=tsc_deadline), apic_id)
    keyed = {(e.function, e.index): e for e in made}
    assert len(keyed) == len(made), "no leaf twice"
    return keyed


@given(st.integers(1, 255), st.sampled_from([INTEL, AMD]), st.data())
def test_topology(cpus: int, entries: list[CpuidEntry], data: st.DataObject) -> None:
    apic_id = data.draw(st.integers(0, cpus - 1))
    bits = (cpus - 1).bit_length()
    before = [replace(e) for e in entries]
    leaves = table(entries, apic_id, cpus)
    assert entries == before, "what the host supports is not changed"
    one = leaves[1, 0]
    assert one.ebx >> 24 == apic_id
    assert one.ebx & 0xFFFF == 0x0800
    assert bool(one.edx & 1 << 28) == (cpus > 1)
    if cpus > 1:
        assert one.ebx >> 16 & 0xFF == min(1 << bits, 255)
    if entries is INTEL:
        for function in (0xB, 0x1F):
            threads, cores, end = (leaves[function, n] for n in range(3))
            assert (threads.eax, threads.ebx, threads.ecx) == (0, 1, 0x100)
            assert (cores.eax, cores.ebx, cores.ecx) == (bits, cpus, 0x201)
            assert (end.ebx, end.ecx) == (0, 2)
            assert apic_id >> cores.eax == 0, "one package"
            assert {e.edx for e in (threads, cores, end)} == {apic_id}
            assert all(e.flags & constants.KVM_CPUID_FLAG_SIGNIFCANT_INDEX for e in (threads, cores, end))
        first, third = leaves[4, 0], leaves[4, 3]
        assert first.eax >> 14 & 0xFFF == 0, "a core has its first level to itself"
        assert third.eax >> 14 & 0xFFF == (1 << bits) - 1, "all share the third"
        assert first.eax >> 26 == min((1 << bits) - 1, 63)
        assert leaves[4, 4].eax == 0, "no more caches"
    else:
        assert (0xB, 0) not in leaves or leaves[0xB, 0].edx == apic_id
        assert leaves[0x8000001E, 0].eax == apic_id
        assert leaves[0x8000001E, 0].ebx >> 8 & 0xFF == 0, "one thread a core"
        assert leaves[0x8000001D, 3].eax >> 14 & 0xFFF == (1 << bits) - 1
        size = leaves[0x80000008, 0]
        assert size.ecx & 0xFF == cpus - 1
        assert size.ecx >> 12 & 0xF == bits
        assert size.eax == 0x3030 and size.ecx >> 16 == 0xAB, "the rest stays"
    assert bool(leaves[0x80000001, 0].ecx & 2) == (cpus > 1)


def test_features() -> None:
    leaves = table(INTEL, 0, 1)
    assert leaves[1, 0].ecx == 1 << 31 | 1 << 24 | 1 << 21, "a hypervisor, TSC deadline, x2APIC, and no OSXSAVE yet"
    assert leaves[7, 0] == INTEL[5]
    assert not table(INTEL, 0, 1, tsc_deadline=False)[1, 0].ecx & 1 << 24
    assert table(AMD, 0, 1)[1, 0].edx & 1 << 9, "the local APIC, whatever the host's table says"


def test_without_a_local_apic_all_that_needs_one_is_hidden() -> None:
    leaves = table(INTEL, 0, 1, local_apic=False)
    assert not leaves[1, 0].ecx & (1 << 21 | 1 << 24)
    assert not leaves[1, 0].edx & 1 << 9
    assert not leaves[0x80000001, 0].edx & 1 << 9
    features = leaves[0x40000001, 0].eax
    assert features & 1 << 3, "kvm-clock stays"
    assert not features & (1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14 | 1 << 15)
