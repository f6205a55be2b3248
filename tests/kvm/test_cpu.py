"""`--cpu`: what a guest's own CPUID instruction says of the processor that was asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kvm_cffi import CpuidEntry, Vcpu
from pyvmm.errors import UserError
from pyvmm.vcpu.dependencies import missing
from pyvmm.vcpu.features import FEATURES, present
from tests.rig.board import Board, board
from tests.rig.cpuid import cpuid
from tests.rig.rig import HARDWARE


def leaf(machine: Board, vcpu: Vcpu, function: int, index: int = 0) -> CpuidEntry:
    said = cpuid(machine, vcpu, function, index)
    return CpuidEntry(function, index, 0, said.eax, said.ebx, said.ecx, said.edx)


def features(machine: Board) -> set[str]:
    """All that the guest can find. A function that its processor has not reads as something else.

    Software-backed KVM shows the host's features, whatever it is told: there it is what we tell it.
    """
    if not HARDWARE:
        return present(machine.life.cpus.cpuid)
    vcpu = machine.vcpus[0]
    highest = {base: leaf(machine, vcpu, base).eax for base in (0, 0x80000000)}
    leaves = sorted({bit.leaf for bits in FEATURES.values() for bit in bits})
    return present(
        leaf(machine, vcpu, function, index)
        for function, index in leaves
        if function <= highest.get(function & 0x80000000, 0) and function < 0xC0000000
    )


def test_no_feature_without_what_it_needs() -> None:
    with board("pio") as machine:
        seen = features(machine)
    assert {"fpu", "tsc", "msr", "cx8", "apic", "lm", "hypervisor"} <= seen
    assert not {name: missing(name, seen) for name in seen if missing(name, seen)}


def test_a_flag_less_and_all_that_needs_it() -> None:
    with board("pio", cpu="host,+sse2,-x2apic,-sep") as machine:
        seen = features(machine)
        assert "sse2" in seen and not seen & {"x2apic", "sep"}
    with board("pio", cpu="host,-sse2") as machine:
        assert "sse" in (seen := features(machine)) and not seen & {"sse2", "pni", "aes", "gfni", "avx", "avx2"}


def test_address_bits_and_vendor() -> None:
    with board("smp", cpus=2, cpu="host,phys-bits=36,vendor=pyvmm  pyvmm") as machine:
        for vcpu in machine.vcpus:
            assert leaf(machine, vcpu, 0x80000008).eax & 0xFF == 36
            zero = leaf(machine, vcpu, 0)
            assert b"".join(v.to_bytes(4, "little") for v in (zero.ebx, zero.edx, zero.ecx)) == b"pyvmm  pyvmm"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cpu": "host,+ia64"}, "this host's KVM does not support ia64"),
        ({"cpu": "host,+x2apic", "irqchip": "user"}, "x2apic needs apic, which this machine does not have"),
        ({"cpu": "host,phys-bits=64"}, "physical addresses have at most "),
        ({"cpu": "host,avx"}, "'avx' is no change"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as error, board("pio", **options):
        pass
    assert "\n" not in str(error.value)
