"""The exit loop's interrupts from a PIC in user space, on a vCPU that is not one."""

from __future__ import annotations

import threading
from typing import cast

from kvm_cffi import KvmError, Vcpu
from kvm_cffi.exits import Exit, Intr
from pyvmm.bus import Bus
from pyvmm.vcpu.exits import ExitHandler
from pyvmm.vcpu.thread import VcpuThread


class Pic:
    def __init__(self, *vectors: int) -> None:
        self._vectors = list(vectors)

    @property
    def intr(self) -> bool:
        return bool(self._vectors)

    def acknowledge(self) -> int:
        return self._vectors.pop(0)


class KickedVcpu:
    """Its first two entries are kicked out before they take the vector that is queued: a split irqchip may."""

    id = 0
    immediate_exit = False
    thread: VcpuThread
    ready_for_interrupt_injection = True

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

    def run_io(self, lock: threading.Lock, pio: Bus, mmio: Bus) -> Exit:
        self.entries += 1
        if self.entries > 2 and self.queued is not None:
            self.taken.append(self.queued)
            self.queued = None
        if self.entries == 6:
            self.thread.stopping = True
        return Intr()


def test_no_vector_is_lost_when_the_kernel_has_one_already() -> None:
    vcpu = KickedVcpu()
    raised: list[BaseException] = []
    vcpu.thread = thread = VcpuThread(
        cast(Vcpu, vcpu),
        threading.Lock(),
        Bus("PIO", 1 << 16),
        Bus("MMIO", 1 << 52),
        cast(ExitHandler, None),
        lambda thread, error: raised.append(error),
        Pic(0x20, 0x24, 0x28),
    )
    thread.start()
    thread.join()
    assert raised == [] and vcpu.taken == [0x20, 0x24, 0x28]
    assert not vcpu.window
