"""What of the guest's time lives in the kernel: TSCs, kvm-clock, the local APICs' timers, the PIT. It can stand still.

A guest that was paused must find that no two of its clocks have drifted apart, so all of them go on where they stood:
the TSC by its offset, the same on each vCPU (writing the MSR once per vCPU would give them different ones, and KVM its
master clock up), kvm-clock by KVM_SET_CLOCK, timers by their remaining counts. Registers by Intel SDM volume 3, 11.5.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kvm_cffi import KvmError, Vcpu, Vm
from pyvmm.vcpu.state import MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE

APIC_LVTT: Final = 0x320
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390
LVTT_MODE: Final = 3 << 17
LVTT_PERIODIC: Final = 1 << 17
LVTT_TSC_DEADLINE: Final = 2 << 17


@dataclass
class _Timer:
    """A local APIC's timer at the moment when it stopped."""

    mode: int
    count: int
    """TMCCT."""
    deadline: int


@dataclass
class Stood:
    """Where everything stood."""

    tscs: list[int]
    timers: list[_Timer]
    pit: bytes
    clock: int
    """kvm-clock, in ns."""


def _register(lapic: bytes | bytearray, offset: int) -> int:
    return int.from_bytes(lapic[offset : offset + 4], "little")


class KernelTime:
    """Of the vCPUs of *vm*; stop() and go() while they stand still."""

    def __init__(self, vm: Vm, vcpus: list[Vcpu], *, local_apic: bool, pit: bool) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._local_apic = local_apic
        self._pit_in_kernel = pit
        self._stood = Stood([], [], b"", 0)
        self._offsets: list[int] = []
        """Of the TSCs, as KVM has them until go()."""

    def stop(self) -> None:
        """Note where everything stands."""
        self._offsets = self._tsc_offsets()
        timers = [self._timer(vcpu) for vcpu in self._vcpus] if self._local_apic else []
        pit = self._vm.get_pit2() if self._pit_in_kernel else b""
        tscs = [vcpu.get_msrs([MSR_IA32_TSC]).get(MSR_IA32_TSC, 0) for vcpu in self._vcpus]
        self._stood = Stood(tscs, timers, pit, self._vm.get_clock())

    def align(self, number: int) -> None:
        """vCPU *number* comes anew: its TSC goes on with that of the first one, and it has no timer."""
        if self._offsets:
            self._offsets[number] = self._offsets[0]
        tscs, timers = list(self._stood.tscs), list(self._stood.timers)
        tscs[number] = tscs[0]
        if timers:
            timers[number] = _Timer(0, 0, 0)
        self._stood = replace(self._stood, tscs=tscs, timers=timers)  # a snapshot may have the other

    def save(self) -> Stood:
        """While all stands still: where."""
        return self._stood

    def load(self, stood: Stood) -> None:
        """Let go() go on from *stood*, after the vCPUs got their state back, and with it other TSC offsets perhaps."""
        self._offsets = self._tsc_offsets()
        self._stood = stood

    def _tsc_offsets(self) -> list[int]:
        return [vcpu.tsc_offset for vcpu in self._vcpus] if self._vcpus[0].has_tsc_offset else []

    def _timer(self, vcpu: Vcpu) -> _Timer:
        lapic = vcpu.get_lapic()
        deadline = vcpu.get_msrs([MSR_IA32_TSC_DEADLINE]).get(MSR_IA32_TSC_DEADLINE, 0)
        return _Timer(_register(lapic, APIC_LVTT) & LVTT_MODE, _register(lapic, APIC_TMCCT), deadline)

    def go(self) -> None:
        """Let everything go on from there."""
        stood = self._stood
        if self._offsets:
            passed = self._vcpus[0].get_msrs([MSR_IA32_TSC])[MSR_IA32_TSC] - stood.tscs[0]
            for vcpu, offset in zip(self._vcpus, self._offsets, strict=True):
                vcpu.tsc_offset = offset - passed
        else:
            for vcpu, tsc in zip(self._vcpus, stood.tscs, strict=True):
                vcpu.try_set_msrs({MSR_IA32_TSC: tsc})
        self._vm.set_clock(stood.clock)
        for vcpu, timer in zip(self._vcpus, stood.timers, strict=False):
            self._restart(vcpu, timer)
        if self._pit_in_kernel:
            self._vm.set_pit2(stood.pit)
        for vcpu in self._vcpus:
            try:
                vcpu.kvmclock_ctrl()
            except KvmError:  # this guest has no kvm-clock whose watchdog must be told
                pass

    def _restart(self, vcpu: Vcpu, timer: _Timer) -> None:
        """Only the timer: interrupts that have come meanwhile stay."""
        if timer.mode == LVTT_TSC_DEADLINE:
            if timer.deadline:
                vcpu.try_set_msrs({MSR_IA32_TSC_DEADLINE: timer.deadline})
            return
        lapic = bytearray(vcpu.get_lapic())
        if not _register(lapic, APIC_TMICT) or (timer.mode != LVTT_PERIODIC and not timer.count):
            return  # not started, or a one-shot that has gone off
        lapic[APIC_TMCCT : APIC_TMCCT + 4] = timer.count.to_bytes(4, "little")
        vcpu.set_lapic(bytes(lapic))
