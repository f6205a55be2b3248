"""Several vCPUs: they start by INIT and SIPI, and each one's CPUID tells where it sits."""

from __future__ import annotations

import pytest

from kvm_cffi import Vcpu
from pyvmm.machine.outcome import End, Outcome
from tests.rig.board import board
from tests.rig.cpuid import Leaf, cpuid
from tests.rig.rig import HARDWARE

EDX1_HTT = 1 << 28
ECX8_1_TOPOEXT = 1 << 22


@pytest.mark.parametrize("cpus", [1, 2, 3, 8])
def test_all_cpus_start(cpus: int) -> None:
    with board("smp", cpus=cpus, parameters={"wait": 1 << (30 if cpus > 1 else 22)}) as machine:
        assert machine.finish() == Outcome(End.DEBUG_EXIT, cpus)
        assert machine.value("cpus") == cpus
        assert machine.value("apic_ids") == (1 << cpus) - 1


def test_all_cpus_start_with_a_split_irqchip() -> None:
    with board("smp", cpus=3, irqchip="split") as machine:
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 3)


@pytest.mark.parametrize("cpus", [1, 2, 3, 5])
def test_topology_by_cpuid(cpus: int) -> None:
    """One package of N cores with one thread each (Intel SDM volume 2, CPUID leaves 1, 4 and 0BH; AMD APM volume 3)."""
    bits = (cpus - 1).bit_length()
    with board("smp", cpus=cpus) as machine:
        for vcpu in machine.vcpus:

            def ask(function: int, index: int = 0, vcpu: Vcpu = vcpu) -> Leaf:
                return cpuid(machine, vcpu, function, index)

            highest, extended = ask(0).eax, ask(0x80000000).eax
            leaf = ask(1)
            assert leaf.ebx >> 24 == vcpu.id, "initial APIC ID"
            if HARDWARE or cpus > 1:  # software-backed KVM sets HTT whatever it is told
                assert bool(leaf.edx & EDX1_HTT) == (cpus > 1)
            if cpus > 1:
                assert leaf.ebx >> 16 & 0xFF == 1 << bits
            if highest >= 0xB:
                threads, cores, end = ask(0xB, 0), ask(0xB, 1), ask(0xB, 2)
                assert (threads.eax, threads.ebx & 0xFFFF, threads.ecx & 0xFFFF) == (0, 1, 0 | 1 << 8)
                assert (cores.eax, cores.ebx & 0xFFFF, cores.ecx & 0xFFFF) == (bits, cpus, 1 | 2 << 8)
                assert (end.ebx & 0xFFFF, end.ecx >> 8 & 0xFF) == (0, 0)
                assert threads.edx == cores.edx == vcpu.id, "x2APIC ID"
            if extended >= 0x80000008:
                assert ask(0x80000008).ecx & 0xFF == cpus - 1 or not ask(0x80000001).ecx
            if extended >= 0x8000001E and ask(0x80000001).ecx & ECX8_1_TOPOEXT:
                assert ask(0x8000001E).eax == vcpu.id
                assert ask(0x8000001E).ebx >> 8 & 0xFF == 0, "one thread a core"


def test_no_apic_in_cpuid_without_one() -> None:
    with board("pio", irqchip="user") as machine:
        leaf = cpuid(machine, machine.vcpus[0], 1)
        assert not leaf.edx & 1 << 9
        assert not leaf.ecx & (1 << 21 | 1 << 24), "no x2APIC, no TSC deadline timer"


def test_a_hypervisor_says_so() -> None:
    with board("pio") as machine:
        assert cpuid(machine, machine.vcpus[0], 1).ecx & 1 << 31
        signature = cpuid(machine, machine.vcpus[0], 0x40000000)
        assert signature.ebx == int.from_bytes(b"KVMK", "little")
        assert cpuid(machine, machine.vcpus[0], 0x40000001).eax & 1 << 3, "KVM_FEATURE_CLOCKSOURCE2: kvm-clock"
