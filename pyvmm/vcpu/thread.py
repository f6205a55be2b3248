"""The exit loop: one thread a vCPU, which runs the guest and hands each exit to the board under the machine lock."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from kvm_cffi import Exit, KvmError, Vcpu, catch_signal, constants
from kvm_cffi.exits import Hlt, Intr, IrqWindowOpen, MmioRead, MmioWrite, PioIn, PioOut
from kvm_cffi.vcpu import Io
from pyvmm.bus import Bus
from pyvmm.trace import OFF, Channel

KICK: Final = signal.SIGRTMIN + 1
"""The signal that takes a vCPU thread out of KVM_RUN; its handler does nothing."""


def describe(exit: Exit) -> str:
    """An exit as a line of the trace."""
    match exit:
        case PioOut(port, size, value):
            return f"KVM_EXIT_IO out port {port:#x} size {size} = {value:#x}"
        case PioIn(port, size):
            return f"KVM_EXIT_IO in port {port:#x} size {size}"
        case MmioWrite(address, size, value):
            return f"KVM_EXIT_MMIO write {address:#x} size {size} = {value:#x}"
        case MmioRead(address, size):
            return f"KVM_EXIT_MMIO read {address:#x} size {size}"
        case _:
            return str(exit)


class InterruptController(Protocol):
    """What a CPU without an in-kernel PIC asks for its external interrupt."""

    @property
    def intr(self) -> bool:
        """The level of the INTR pin."""

    def acknowledge(self) -> int:
        """The INTA cycle: the vector, 0 to 255."""


class VcpuThread:
    """A vCPU and its thread.

    The frequent exits go straight to the buses; every other one goes to *on_exit*, under the machine lock too.
    *pic* is given where the PIC is in user space: then its interrupts go in with KVM_INTERRUPT, and where the local
    APIC is not in the kernel either, KVM_EXIT_HLT puts this thread to sleep until INTR is up.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        lock: threading.Lock,
        pio: Bus,
        mmio: Bus,
        on_exit: Callable[[VcpuThread, Exit], None],
        on_error: Callable[[VcpuThread, BaseException], None],
        pic: InterruptController | None = None,
        trace: Channel = OFF,
        irq_trace: Channel = OFF,
    ) -> None:
        self.vcpu = vcpu
        self.stopping = False
        self.halted = False
        """The thread sleeps in user space after KVM_EXIT_HLT."""
        self.throttled = False
        """The console is full: wait outside the machine lock until resume()."""
        self._lock = lock
        self._pio = pio
        self._mmio = mmio
        self._on_exit = on_exit
        self._on_error = on_error
        self._pic = pic
        self._trace = trace
        self._irq_trace = irq_trace
        self._result = 0  # of the last read that was traced
        self._vector: int | None = None  # acknowledged at the PIC, not yet taken by the kernel
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        # A signal to a thread that has just ended would crash; reentrant, for a signal handler may kick in mid-kick.
        self._ending = threading.RLock()
        self._running = False
        self._thread = threading.Thread(target=self._main, name=f"vcpu{vcpu.id}", daemon=True)

    @property
    def is_current(self) -> bool:
        """True when called from this vCPU's own thread."""
        return threading.current_thread() is self._thread

    def is_halted(self) -> bool:
        """The guest has halted, or waits to be started; ask in the vCPU's own thread."""
        if self.halted:
            return True
        try:
            return self.vcpu.get_mp_state() != constants.KVM_MP_STATE_RUNNABLE
        except KvmError:  # without an in-kernel local APIC there is no such state: `halted` says it all
            return False

    def start(self) -> None:
        catch_signal(KICK)
        self._thread.start()

    def kick(self) -> None:
        """Make the thread come out of KVM_RUN, or out of its sleep, and look again; nothing when called from itself."""
        if self.is_current:
            return
        self._wake.set()
        self.vcpu.immediate_exit = True
        with self._ending:
            if self._running:
                assert self._thread.ident is not None
                signal.pthread_kill(self._thread.ident, KICK)

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* in the vCPU's thread, outside KVM_RUN and under the machine lock."""
        self._calls.append(function)
        self.kick()
        if self.is_current:  # from inside an exit: the next KVM_RUN finishes that access and comes back at once
            self.vcpu.immediate_exit = True

    def nmi(self) -> None:
        """Queue a non-maskable interrupt for this vCPU."""

        def inject() -> None:
            self.vcpu.nmi()
            self.halted = False

        self.call(inject)

    def resume(self) -> None:
        """End the wait of a throttled vCPU."""
        self.throttled = False
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end; join() waits for it."""
        self.stopping = True
        self.kick()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        self._running = True
        try:
            self._loop()
        except BaseException as error:  # a device that raises ends the machine, never silently a thread
            self._on_error(self, error)
        finally:
            with self._ending:
                self._running = False

    def _loop(self) -> None:
        lock, pio, mmio = self._lock, self._pio, self._mmio
        run = self._run_traced if self._trace.enabled else self.vcpu.run_io
        while not self.stopping:
            if self._pic is not None:
                self._interrupt()
            exit = run(lock, pio, mmio)
            if exit is not None:  # None: port I/O or MMIO, which the buses have had
                with lock:
                    match exit:
                        case Intr():
                            self._come_back()
                        case Hlt() if self._pic is not None:
                            self.halted = True
                        case IrqWindowOpen():
                            pass
                        case _:
                            self._on_exit(self, exit)
            if self.halted or self.throttled:
                self._sleep()

    def _run_traced(self, lock: AbstractContextManager[object], pio: Io, mmio: Io) -> Exit | None:
        """Vcpu.run_io() step by step, and a line of the trace for each."""
        vcpu, trace = self.vcpu, self._trace
        trace(f"vcpu{vcpu.id} KVM_RUN")
        exit = vcpu.run(self._result)
        with lock:
            if vcpu.coalesced:  # writes that KVM has gathered (KVM_REGISTER_COALESCED_MMIO); they came before this exit
                for is_pio, address, size, value in vcpu.coalesced_writes():
                    (pio if is_pio else mmio).write(address, size, value)
            trace(f"vcpu{vcpu.id} {describe(exit)}")
            match exit:
                case PioOut(port, size, value):
                    pio.write(port, size, value)
                case PioIn(port, size):
                    self._result = pio.read(port, size)
                    trace(f"vcpu{vcpu.id} gets {self._result:#x} from port {port:#x}")
                case MmioWrite(address, size, value):
                    mmio.write(address, size, value)
                case MmioRead(address, size):
                    self._result = mmio.read(address, size)
                case _:
                    return exit
        return None

    def _come_back(self) -> None:
        """After a kick: the order matters, for whoever kicks sets its state before immediate_exit."""
        self.vcpu.immediate_exit = False
        while self._calls:
            self._calls.popleft()()

    def _interrupt(self) -> None:
        """Give the guest the PIC's interrupt if it can take one, or ask to be told when it can."""
        pic = self._pic
        assert pic is not None
        with self._lock:
            if self._vector is None and not pic.intr:
                self.vcpu.request_interrupt_window(False)
            elif self.vcpu.ready_for_interrupt_injection:
                vector = pic.acknowledge() if self._vector is None else self._vector
                try:
                    self.vcpu.interrupt(vector)
                except KvmError:  # the kernel has one queued already, from an entry that was kicked out
                    self._vector = vector
                    self.vcpu.request_interrupt_window(True)
                    return
                self._vector = None
                if self._irq_trace.enabled:
                    self._irq_trace(f"KVM_INTERRUPT vector {vector:#x}")
                self.vcpu.request_interrupt_window(pic.intr)
            else:
                self.vcpu.request_interrupt_window(True)

    def _sleep(self) -> None:
        """Wait, without the machine lock, until the guest has something to do again."""
        self._wake.clear()  # before each look at `stopping`: a stop() after it ends the wait
        while not self.stopping:
            with self._lock:
                while self._calls:
                    self._calls.popleft()()
                if self.halted and self._pic is not None and self._pic.intr and self.vcpu.if_flag:
                    self.halted = False  # with interrupts off, nothing but an NMI or a reset ends HLT
            if not (self.halted or self.throttled):
                break
            self._wake.wait()
            self._wake.clear()
