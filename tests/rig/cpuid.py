"""The CPUID instruction, run by a guest."""

from __future__ import annotations

from dataclasses import dataclass

from kvm_cffi import Vcpu, constants
from kvm_cffi.exits import PioOut
from pyvmm.boot.entry import real_mode
from pyvmm.vcpu.registers import set_cpu_state
from tests.rig.board import Board

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
    if machine.board.irqchip.local_apic:
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
