"""Several vCPUs: they start by INIT and SIPI, and each one's CPUID tells where it sits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kvm_cffi import Vcpu, constants
from kvm_cffi.exits import PioOut
from pyvmm.boot.entry import real_mode
from pyvmm.machine.outcome import End, Outcome
from pyvmm.vcpu.registers import set_cpu_state
from tests.rig.board import Board, board
from tests.rig.rig import HARDWARE

EDX1_HTT = 1 << 28
ECX8_1_TOPOEXT = 1 << 22
# mov eax, ebp; mov ecx, esi; cpuid; then the four registers to port 0x5000, and a HLT
CPUID = (
    "66 89 e8  66 89 f1  0f a2  66 87 ca  66 89 d7  ba 00 50  66 ef  66 89 d8 66 ef  66 89 c8 66 ef  66 89 f8 66 ef  f4"
)


@dataclass(frozen=True)
class Leaf:
    eax: int
    ebx: int
    ecx: int
    edx: int


def cpuid(machine: Board, vcpu: Vcpu, function: int, index: int = 0) -> Leaf:
    """What CPUID gives a guest on *vcpu*: the instruction itself is run."""
    # EDX is taken as the port, so the order is EAX, EBX, EDX (swapped into ECX), ECX (saved in EDI).
    machine.memory.write(0x1000, bytes.fromhex(CPUID))
    set_cpu_state(vcpu, real_mode(0, 0x1000, sp=0x7000))
    if machine.irqchip.local_apic:
        vcpu.set_mp_state(constants.KVM_MP_STATE_RUNNABLE)
    regs = vcpu.get_regs()
    regs.rbp, regs.rsi = function, index
    vcpu.set_regs(regs)
    values: list[int] = []
    while len(values) < 4:
        exit = vcpu.run()
        assert isinstance(exit, PioOut), exit
        values.append(exit.value)
    eax, ebx, edx, ecx = values
    return Leaf(eax, ebx, ecx, edx)


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
