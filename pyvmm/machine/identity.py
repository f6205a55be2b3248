"""What a machine is, and how it is: all that a snapshot has beside RAM."""

from __future__ import annotations

from dataclasses import dataclass

from kvm_cffi import CpuidEntry
from pyvmm.config import MachineConfig
from pyvmm.state import Plain
from pyvmm.vcpu.kernel_time import Stood
from pyvmm.vcpu.state import VcpuState


@dataclass(frozen=True)
class Identity:
    """What it is: the same from its start to its end."""

    config: MachineConfig
    cpuid: list[CpuidEntry]
    """Of the first vCPU."""
    tsc_khz: int


@dataclass(frozen=True)
class MachineState:
    """How it was at a moment."""

    parts: dict[str, Plain]
    vcpus: list[VcpuState]
    now: int
    """On the guest's clock, in ns."""
    time: Stood
