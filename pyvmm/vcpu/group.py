"""All vCPUs of a machine: made together, started, held and stopped together."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from kvm_cffi import CpuidEntry, KvmError, System, Vcpu, Vm
from kvm_cffi.exits import Debug, Hlt
from pyvmm.bus import Bus
from pyvmm.config import ConfigError
from pyvmm.errors import UserError
from pyvmm.trace import Channel
from pyvmm.vcpu import state
from pyvmm.vcpu.cpuid import with_apic_id
from pyvmm.vcpu.exits import ExitHandler
from pyvmm.vcpu.observer import Observer
from pyvmm.vcpu.registers import MTRRS, hide_local_apic, set_mtrrs
from pyvmm.vcpu.thread import InterruptController, VcpuThread

PATIENCE: Final = 10.0
"""Seconds that vCPUs get to stand still; more than that takes only a device that does not return."""


class VcpuGroup:
    """*count* vCPUs of *vm*, with APIC IDs from 0 up; raises UserError where this host's KVM makes no more.

    All are made at once and stay, for KVM destroys none: one that is in no socket is parked, see seat().
    *cpuid* is what the first of them shows; *pic* is the PIC that the boot CPU asks where it is in user space; without
    *local_apic* no CPU shows an APIC. *asked_by* is the field of MachineConfig that asks for so many.
    """

    def __init__(
        self,
        system: System,
        vm: Vm,
        count: int,
        cpuid: list[CpuidEntry],
        *,
        lock: threading.Lock,
        pio: Bus,
        mmio: Bus,
        machine: ExitHandler,
        on_error: Callable[[VcpuThread, BaseException], None],
        pic: InterruptController | None,
        local_apic: bool,
        irq_trace: Channel,
        asked_by: str = "cpus",
    ) -> None:
        most = system.check_extension("KVM_CAP_MAX_VCPUS")
        most = min(most, system.check_extension("KVM_CAP_MAX_VCPU_ID") or most)  # vCPU n has the ID n
        if count > most:
            raise ConfigError(f"this host's KVM runs at most {most} vCPUs: ask for fewer", {asked_by: count})
        self._asked_by = asked_by
        self.vcpus: list[Vcpu] = []
        self.threads: list[VcpuThread] = []
        self.debugger: Callable[[Vcpu, Debug | Hlt], None] | None = None
        """Who has asked KVM for KVM_EXIT_DEBUG, and is told of it and of KVM_EXIT_HLT, in the vCPU's thread and under
        the machine lock."""
        self._system = system
        self.cpuid = cpuid
        self._observers: tuple[Observer, ...] = ()
        self._pio = pio
        self._mmio = mmio
        self.asleep = False
        """They have no power: release() lets none of them go on."""
        self._closed = False
        self._started = False
        self.made: list[state.VcpuState] = []
        """What save() gave of them when they were made: where a reset, and one that is plugged in, begins."""
        self._close = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            for number in range(count):
                vcpu = self._create(vm, number, count, local_apic)
                boot_pic = pic if number == 0 else None
                self.vcpus.append(vcpu)
                self.threads.append(VcpuThread(vcpu, lock, pio, mmio, machine, on_error, boot_pic, irq_trace))
            undo.pop_all()

    def _create(self, vm: Vm, number: int, count: int, local_apic: bool) -> Vcpu:
        try:
            vcpu = vm.create_vcpu(number)
        except KvmError as error:
            if error.errno == errno.EMFILE:
                raise
            raise ConfigError(f"KVM makes no vCPU {number} ({error}): ask for fewer", {self._asked_by: count}) from None
        self._close.callback(vcpu.close)
        vcpu.set_cpuid(with_apic_id(self.cpuid, number))
        set_mtrrs(vcpu)
        if not local_apic:
            hide_local_apic(vcpu)
        return vcpu

    def __len__(self) -> int:
        return len(self.threads)

    # From any thread

    @property
    def seated(self) -> list[VcpuThread]:
        """Those that are in sockets."""
        return [thread for thread in self.threads if not thread.parked]

    def start(self) -> None:
        self._started = True
        for thread in self.seated:
            thread.start()

    def stop(self) -> None:
        """Ask all threads to end; from a signal handler too."""
        for thread in self.threads:
            thread.stop()

    def join(self) -> None:
        """Wait until all threads have ended; the machine lock must not be held."""
        for thread in self.threads:
            thread.join()

    def wake_boot_cpu(self) -> None:
        """INTR of a PIC in user space is up; under the machine lock."""
        self.threads[0].interrupt()

    def hold(self) -> None:
        """Ask all vCPUs to stand still."""
        for thread in self.threads:
            thread.hold()

    def wait_until_standing(self) -> None:
        """After hold(); the machine lock must not be held. Raises UserError that names a vCPU that does not come."""
        deadline = time.monotonic() + PATIENCE
        for thread in self.threads:
            if not thread.wait_until_standing(max(0.0, deadline - time.monotonic())):
                raise UserError(f"vCPU {thread.vcpu.id} does not stand still within {PATIENCE:g} s: a device holds it")

    def release(self) -> None:
        if not self.asleep:
            for thread in self.threads:
                thread.release()

    def throttle(self, full: bool) -> None:
        """Hold the vCPUs at their next exit while their output has nowhere to go, or let them go on."""
        for thread in self.threads:
            thread.throttle(full)

    def nmi(self) -> None:
        """Queue a non-maskable interrupt for every vCPU."""
        for thread in self.seated:
            thread.nmi()

    def catch_up(self) -> None:
        """Carry out the writes that KVM has gathered, so that the devices are what the guest has made of them; under
        the machine lock. Nothing once closed."""
        if not self._closed:
            for is_pio, address, size, value in self.vcpus[0].coalesced_writes():  # the ring is the VM's
                (self._pio if is_pio else self._mmio).write(address, size, value)

    def observe(self, observer: Observer) -> None:
        """Let *observer* see every exit."""
        if observer not in self._observers:
            self._set_observers((*self._observers, observer))

    def unobserve(self, observer: Observer) -> None:
        """End that; nothing where it does not watch."""
        if observer in self._observers:
            self._set_observers(tuple(other for other in self._observers if other is not observer))

    def _set_observers(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        for thread in self.threads:
            thread.observe(observers)

    # While all stand still, or have not begun

    def save(self) -> list[state.VcpuState]:
        """The state of each."""
        indices = [*self._system.get_msr_index_list(), *MTRRS]
        nested = self._system.check_extension("KVM_CAP_NESTED_STATE")
        saved = [state.save(vcpu, indices, nested) for vcpu in self.vcpus]
        for thread, one in zip(self.threads, saved, strict=True):
            one.halted, one.vector = thread.halted, thread.vector
        return saved

    def load(self, states: list[state.VcpuState]) -> None:
        """Put back what save() gave."""
        for thread, saved in zip(self.threads, states, strict=True):
            state.load(thread.vcpu, saved)
            thread.halted, thread.vector = saved.halted, saved.vector

    def seat(self, numbers: Collection[int]) -> None:
        """Those of *numbers* are in sockets from here on, the others parked. One whose thread has not begun begins, and
        stands. Raises RuntimeError where this host has no memory for that thread, and nothing has changed."""
        for thread in self.threads:
            if self._started and thread.vcpu.id in numbers and not thread.begun:
                thread.start()
        for thread in self.threads:
            thread.parked = thread.vcpu.id not in numbers

    def power_on(self, number: int) -> None:
        """vCPU *number* is as it was made: it waits for INIT and SIPI. But for its TSC, which would not be that of the
        others any more."""
        made, thread = self.made[number], self.threads[number]
        msrs = {index: value for index, value in made.msrs.items() if index != state.MSR_IA32_TSC}
        state.load(thread.vcpu, replace(made, msrs=msrs))
        thread.halted, thread.vector = made.halted, made.vector

    def drain_coalesced(self) -> None:
        """Throw away the writes that KVM has gathered and nobody has seen."""
        for _ in self.vcpus[0].coalesced_writes():  # the ring is the VM's
            pass

    def close(self) -> None:
        """Close the descriptors; once is enough. The threads have ended."""
        self._closed = True
        self._close.close()
