"""The exit loop: one thread a vCPU, which runs the guest and hands each exit on under the machine lock.

The loop has two ways. The fast one lets Vcpu.run_io() carry port I/O and MMIO to the buses; the observed one takes each
exit apart for its observers. Which it is, is chosen anew after every kick.

A vCPU that is held, or is in no socket, stands still outside KVM_RUN, with the exit before that served and its I/O
completed: KVM_RUN has come back with EINTR, which it does only then (Documentation/virt/kvm/api.rst, KVM_RUN).
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from kvm_cffi import Exit, KvmError, Vcpu, catch_signal, constants
from kvm_cffi.exits import MmioRead, MmioWrite, PioIn, PioOut
from kvm_cffi.vcpu import Io
from pyvmm import threads
from pyvmm.bus import Bus
from pyvmm.trace import OFF, Channel
from pyvmm.vcpu.exits import ExitHandler, serve
from pyvmm.vcpu.observer import Observer

KICK: Final = signal.SIGRTMIN + 1
SETTLE: Final = 4
"""Tries: one is enough, but for a kick that comes meanwhile and a vector that the guest had taken before."""
"""The signal that takes a vCPU thread out of KVM_RUN; its handler does nothing."""


class InterruptController(Protocol):
    """What a CPU without an in-kernel PIC asks for its external interrupt."""

    @property
    def intr(self) -> bool:
        """The level of the INTR pin."""

    def acknowledge(self) -> int:
        """The INTA cycle: the vector, 0 to 255."""


class VcpuThread:
    """A vCPU and its thread.

    Port I/O and MMIO go straight to the buses; what every other exit leads to, *machine* is told. *on_error* gets what
    KVM_RUN or a device has raised, when the thread ends of it. *pic* is given where the PIC is in user space: then its
    interrupts go in with KVM_INTERRUPT, and where the local APIC is not in the kernel either, KVM_EXIT_HLT puts this
    thread to sleep until INTR is up.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        lock: threading.Lock,
        pio: Bus,
        mmio: Bus,
        machine: ExitHandler,
        on_error: Callable[[VcpuThread, BaseException], None],
        pic: InterruptController | None = None,
        irq_trace: Channel = OFF,
    ) -> None:
        self.vcpu = vcpu
        self.stopping = False
        self.halted = False
        """The thread sleeps in user space after KVM_EXIT_HLT."""
        self.throttled = False
        """The console is full: wait outside the machine lock until throttle(False)."""
        self.held = False
        """Stand still, or on the way there: see hold()."""
        self.parked = False
        """It is in no socket, and stands still until it is in one. Changed only while it stands."""
        self.vector: int | None = None
        """Acknowledged at the PIC, not yet taken by the kernel."""
        self.interrupts_held = False
        """The PIC waits: a debugger steps."""
        self.observers: tuple[Observer, ...] = ()
        self._lock = lock
        self._pio = pio
        self._mmio = mmio
        self._machine = machine
        self._on_error = on_error
        self._pic = pic
        self._irq_trace = irq_trace
        self._result = 0  # of the last read that was observed
        self._came_back = False  # KVM_RUN was interrupted: all before it is complete
        self._window = False  # what request_interrupt_window() was told last
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threads.Wakeup()
        self._standing = threading.Event()
        self._gate = threading.Lock()  # `held` and `_standing` change together: a release() and the next hold() race
        # A signal to a thread that has just ended would crash; reentrant, for a signal handler may kick in mid-kick.
        self._ending = threading.RLock()
        self._running = False
        self._thread = threading.Thread(target=self._main, name=f"vcpu{vcpu.id}", daemon=True)

    @property
    def is_current(self) -> bool:
        """True when called from this vCPU's own thread."""
        return threading.current_thread() is self._thread

    @property
    def begun(self) -> bool:
        """start() was called."""
        return self._thread.ident is not None

    def is_halted(self) -> bool:
        """The guest has halted, or waits to be started; ask in the vCPU's own thread."""
        if self.halted:
            return True
        try:
            return self.vcpu.get_mp_state() != constants.KVM_MP_STATE_RUNNABLE
        except KvmError:  # without an in-kernel local APIC there is no such state: `halted` says it all
            return False

    @property
    def waits_for_pic(self) -> bool:
        """HLT ends when INTR of a PIC in user space is up."""
        return self._pic is not None

    def start(self) -> None:
        catch_signal(KICK)
        threads.start(self._thread, hears={KICK})

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

    def interrupt(self) -> None:
        """INTR of the PIC is up; under the machine lock. A guest that has halted needs no more than to be woken: the
        thread looks at INTR before KVM_RUN, and an interrupted KVM_RUN would be one more for each tick."""
        if self.halted:
            self._wake.set()
        else:
            self.kick()

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

    def throttle(self, full: bool) -> None:
        """Wait at the next exit while the console takes no more, or end that wait."""
        self.throttled = full
        if not full:
            self._wake.set()

    def hold(self) -> None:
        """Ask the vCPU to stand still; from any thread, the vCPU's own and from inside an exit too: the guest executes
        nothing more after that exit. wait_until_standing() waits for it, release() ends it."""
        self.vcpu.immediate_exit = True  # first: one that sleeps after HLT must not run on when it sees `held`
        with self._gate:
            self.held = True
        if self.is_current:
            self.vcpu.immediate_exit = True
        self.kick()

    def wait_until_standing(self, timeout: float) -> bool:
        """Whether the vCPU stands still within *timeout* seconds, or has ended; the machine lock must not be held."""
        return not self._thread.is_alive() or self._standing.wait(timeout)

    def release(self) -> None:
        """Let a held vCPU go on."""
        with self._gate:
            self.held = False
            self._standing.clear()
        self._wake.set()

    def observe(self, observers: tuple[Observer, ...]) -> None:
        """Let *observers* see each exit from the next kick on, which is now."""
        self.observers = observers
        self.kick()
        if self.is_current:
            self.vcpu.immediate_exit = True

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
            self._standing.set()

    def _loop(self) -> None:
        lock, pio, mmio, pic = self._lock, self._pio, self._mmio, self._pic
        if self.held or self.parked:
            self._stand()
        if pic is not None:
            self._look_again()
        run = self._way()
        while not self.stopping:
            # Most exits end here, without a lock: INTR that goes up after this look comes with a kick.
            if pic is not None and (pic.intr or self.vector is not None or self._window):
                self._interrupt()
            exit = run(lock, pio, mmio)
            if exit is not None:  # None: port I/O or MMIO, which the buses have had
                with lock:
                    serve(self, exit, self._machine)
                if self._came_back:
                    self._came_back = False
                    if self.held or self.parked:
                        if pic is not None:
                            self._settle()
                        self._stand()
                        if pic is not None:
                            self._look_again()
                    run = self._way()
            if self.halted or self.throttled:
                self._sleep()

    def _way(self) -> Callable[[AbstractContextManager[object], Io, Io], Exit | None]:
        return self._run_observed if self.observers else self.vcpu.run_io

    def _run_observed(self, lock: AbstractContextManager[object], pio: Io, mmio: Io) -> Exit | None:
        """Vcpu.run_io() step by step, with the observers told of each."""
        vcpu, observers = self.vcpu, self.observers
        for observer in observers:
            observer.entering(vcpu)
        exit = vcpu.run(self._result)
        with lock:
            if vcpu.coalesced:  # writes that KVM has gathered (KVM_REGISTER_COALESCED_MMIO); they came before this exit
                for is_pio, address, size, value in vcpu.coalesced_writes():
                    for observer in observers:
                        observer.gathered(is_pio, address, size, value)
                    (pio if is_pio else mmio).write(address, size, value)
            for observer in observers:
                observer.exited(vcpu, exit)
            kind = type(exit)  # each is a tuple of what a bus takes; a match would take it apart by its attributes
            if kind is PioOut:
                pio.write(*exit)
            elif kind is MmioWrite:
                mmio.write(*exit)
            elif kind is PioIn or kind is MmioRead:
                self._result = (pio if kind is PioIn else mmio).read(*exit)
                for observer in observers:
                    observer.answered(vcpu, exit, self._result)
            else:
                return exit
        return None

    def come_back(self) -> None:
        """After a kick: the order matters, for whoever kicks sets its state before immediate_exit."""
        self.vcpu.immediate_exit = False
        self._came_back = True
        self._run_calls()

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _settle(self) -> None:
        """Before it stands still: KVM must not hold a vector that nobody sees, for it would be missing where the guest
        goes on from what is saved now, and would come in a state that is put back later."""
        for _ in range(SETTLE):
            if not self.vcpu.may_hold_vector or self.vcpu.get_vcpu_events().interrupt_injected:
                break
            exit = self.vcpu.run_nothing(KICK)
            with self._lock:
                serve(self, exit, self._machine)
        self._came_back = False

    def _look_again(self) -> None:
        """Whether the guest could take an interrupt is known as of the last exit, and another state may have been put
        back since: ask by a KVM_RUN that executes nothing. The next one comes back at once too, lest a kick be lost."""
        self.vcpu.immediate_exit = True
        self.vcpu.run()

    def _stand(self) -> None:
        """Wait, outside KVM_RUN and without the machine lock, until release() or stop(), and not in a socket; calls are
        served."""
        self._wake.clear()  # before each look at `held`: a release() after it ends the wait
        while not self.stopping:
            with self._gate:
                if not (self.held or self.parked):
                    break
                self._standing.set()
            with self._lock:
                self._run_calls()
            self._wake.wait()
            self._wake.clear()

    def _interrupt(self) -> None:
        """Give the guest the PIC's interrupt if it can take one, or ask to be told when it can."""
        pic = self._pic
        assert pic is not None
        with self._lock:
            if self.interrupts_held or (self.vector is None and not pic.intr):
                self._ask_for_window(False)
            elif self.vcpu.ready_for_interrupt_injection:
                vector = pic.acknowledge() if self.vector is None else self.vector
                try:
                    self.vcpu.interrupt(vector)
                except KvmError:  # the kernel has one queued already, from an entry that was kicked out
                    self.vector = vector
                    self._ask_for_window(True)
                    return
                self.vector = None
                self.halted = False  # where it was on its way to stand still as INTR went up
                if self._irq_trace.enabled:
                    self._irq_trace(f"KVM_INTERRUPT vector {vector:#x}")
                self._ask_for_window(pic.intr)
            else:
                self._ask_for_window(True)

    def _ask_for_window(self, wanted: bool) -> None:
        """Only where that is news: a call into C lets go of the GIL, for which the loop may wait."""
        if wanted != self._window:
            self._window = wanted
            self.vcpu.request_interrupt_window(wanted)

    def _sleep(self) -> None:
        """Wait, without the machine lock, until the guest has something to do again."""
        self._wake.clear()  # before each look at `stopping`: a stop() after it ends the wait
        while not self.stopping:
            with self._lock:
                self._run_calls()
                if self.halted and self._pic is not None and self._pic.intr and self.vcpu.if_flag:
                    self.halted = False  # with interrupts off, nothing but an NMI or a reset ends HLT
            if self.held or not (self.halted or self.throttled):
                break  # one that is held stands in the loop, where KVM_RUN completes the last exit first
            self._wake.wait()
            self._wake.clear()
