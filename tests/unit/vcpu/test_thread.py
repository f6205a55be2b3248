"""The exit loop's interrupts from a PIC in user space, on a vCPU that is not one."""

from __future__ import annotations

import threading
from typing import cast

from kvm_cffi import KvmError, Vcpu
from kvm_cffi.exits import Exit, Hlt, Intr
from pyvmm.bus import Bus
from pyvmm.vcpu.exits import ExitHandler
from pyvmm.vcpu.thread import VcpuThread


class Pic:
    def __init__(self, *vectors: int) -> None:
        self.vectors = list(vectors)

    @property
    def intr(self) -> bool:
        return bool(self.vectors)

    def acknowledge(self) -> int:
        return self.vectors.pop(0)


class NoDebugger:
    """All of a machine that these exits ask for."""

    def debugged(self, vcpu: Vcpu, exit: Exit) -> bool:
        return False


class KickedVcpu:
    """Its first two entries are kicked out before they take the vector that is queued: a split irqchip may."""

    id = 0
    immediate_exit = False
    thread: VcpuThread
    ready_for_interrupt_injection = True
    may_hold_vector = False

    def __init__(self) -> None:
        self.entries = 0
        self.queued: int | None = None
        self.taken: list[int] = []
        self.window = False

    def interrupt(self, vector: int) -> None:
        if self.queued is not None:
            raise KvmError(17, "KVM_INTERRUPT")
        self.queued = vector

    def request_interrupt_window(self, value: bool) -> None:
        self.window = value

    def run(self) -> Exit:
        """What asks whether the guest is ready now, before it runs on."""
        assert self.immediate_exit
        return Intr()

    def run_io(self, lock: threading.Lock, pio: Bus, mmio: Bus) -> Exit:
        self.entries += 1
        if self.entries > 2 and self.queued is not None:
            self.taken.append(self.queued)
            self.queued = None
        if self.entries == 6:
            self.thread.stopping = True
        return Intr()


def thread_of(vcpu: KickedVcpu, lock: threading.Lock, pic: Pic, raised: list[BaseException]) -> VcpuThread:
    """The thread of *vcpu*, which asks *pic*; what it raises goes to *raised*."""
    vcpu.thread = VcpuThread(
        cast(Vcpu, vcpu),
        lock,
        Bus("PIO", 1 << 16),
        Bus("MMIO", 1 << 52),
        cast(ExitHandler, NoDebugger()),
        lambda thread, error: raised.append(error),
        pic,
    )
    return vcpu.thread


def test_no_vector_is_lost_when_the_kernel_has_one_already() -> None:
    vcpu = KickedVcpu()
    raised: list[BaseException] = []
    thread = thread_of(vcpu, threading.Lock(), Pic(0x20, 0x24, 0x28), raised)
    thread.start()
    thread.join()
    assert raised == [] and vcpu.taken == [0x20, 0x24, 0x28]
    assert not vcpu.window


class HaltingVcpu(KickedVcpu):
    """It halts again and again, as a guest with nothing to do but its ticks."""

    def __init__(self, halts: int) -> None:
        super().__init__()
        self.halts = halts
        self.if_flag = True

    def run_io(self, lock: threading.Lock, pio: Bus, mmio: Bus) -> Exit:
        self.entries += 1
        if self.immediate_exit:
            return Intr()
        if self.queued is not None:
            self.taken.append(self.queued)
            self.queued = None
        if len(self.taken) == self.halts:
            self.thread.stopping = True
        return Hlt()


def test_an_interrupt_for_a_halted_guest_costs_no_entry_of_its_own() -> None:
    vcpu = HaltingVcpu(100)
    raised: list[BaseException] = []
    lock = threading.Lock()
    pic = Pic()
    thread = thread_of(vcpu, lock, pic, raised)
    thread.start()
    sent = 0
    while not thread.stopping and not raised:
        with lock:
            if thread.halted and not pic.intr:
                pic.vectors.append(0x20 + sent)
                sent += 1
                thread.interrupt()
    thread.stop()
    thread.join()
    assert raised == [] and vcpu.taken == list(range(0x20, 0x20 + 100))
    assert vcpu.entries == 2 + 100, "one to each HLT, none that is interrupted but the first"


class OldVcpu(KickedVcpu):
    """It halts at once. A snapshot is put back while it stands, in which the guest has interrupts on again."""

    def __init__(self) -> None:
        super().__init__()
        self.if_flag = self.ready_for_interrupt_injection = False
        self.loaded = False

    def run(self) -> Exit:
        super().run()
        self.if_flag = self.ready_for_interrupt_injection = self.loaded
        return Intr()

    def run_io(self, lock: threading.Lock, pio: Bus, mmio: Bus) -> Exit:
        if self.immediate_exit:
            return Intr()
        if self.queued is not None:
            self.taken.append(self.queued)
            self.thread.stopping = True
        return Hlt()


def test_after_standing_it_asks_anew_whether_the_guest_takes_interrupts() -> None:
    """What the last exit said is of another moment: a guest that has halted would sleep for ever."""
    vcpu = OldVcpu()
    raised: list[BaseException] = []
    lock = threading.Lock()
    pic = Pic(0x20)
    thread = thread_of(vcpu, lock, pic, raised)
    thread.hold()
    thread.start()
    assert thread.wait_until_standing(60)
    vcpu.loaded = thread.halted = True
    thread.release()
    thread.join()
    assert raised == [] and vcpu.taken == [0x20]
