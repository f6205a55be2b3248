"""A machine's life: its threads and loop, how it is stopped, and what is known when it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from kvm_cffi import Exit, KvmError, Vcpu
from kvm_cffi.exits import FailEntry, InternalError, SetTpr, Shutdown, SystemEvent, UnknownExit
from pyvmm.errors import is_ctrl_c, one_line
from pyvmm.loop import Loop
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.panic import PanicWatch
from pyvmm.memory import GuestMemory
from pyvmm.pci.host import PciHost
from pyvmm.vcpu.report import vcpu_report
from pyvmm.vcpu.thread import VcpuThread

PANIC_LOOK_NS = 250_000_000
PANIC_LOOKS = 6
"""A kernel that has panicked spins: so many looks, so far apart, must find a vCPU running in the kernel."""
LOOK_S = 0.01
"""How often wait() looks again when nothing happens, in seconds."""
REPORTED = (End.PANIC, End.TRIPLE_FAULT, End.INTERNAL_ERROR, End.TIMEOUT)
KVM_SYSTEM_EVENT_RESET = 2


class Lifecycle:
    """What every machine has whatever is on its board; the board is a subclass that fills in vcpus and threads."""

    memory: GuestMemory
    pci: PciHost
    nmi_masked = False

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop = Loop(self.lock)
        self.outcome: Outcome | None = None
        self.vcpus: list[Vcpu] = []
        self.threads: list[VcpuThread] = []
        self._panic = PanicWatch()
        self._error: BaseException | None = None
        self._dead: Vcpu | None = None
        self._insn = b""
        self._started = self._built = False

    # What devices and vCPUs tell, under the machine lock

    def console_output(self, data: bytes) -> None:
        """Everything the guest sends on its console passes here: a panic is first seen there."""
        panicked = self._panic.message
        self._panic.feed(data)
        if self._panic.message and not panicked:
            self._watch_for_death(PANIC_LOOKS)

    def reset_requested(self, how: str) -> None:
        """The guest pulled one of the reset lines; a kernel that resets after a panic has panicked."""
        if self._panic.message:
            self.end(Outcome(End.PANIC, message=self._panic.message))
        else:
            self.end(Outcome(End.RESET, message=how))

    def power_off(self) -> None:
        """The guest turned the machine off."""
        self.end(Outcome(End.POWER_OFF))

    def _watch_for_death(self, looks: int) -> None:
        """The console said that the kernel panicked. Believe it if some vCPU then spins on in the kernel: a shell that
        printed an old log would soon halt."""
        spinning: list[bool] = []

        def look(thread: VcpuThread) -> None:
            if not thread.is_halted() and thread.vcpu.get_sregs().ss.dpl == 0:
                spinning.append(True)

        def ask() -> None:
            for thread in self.threads:
                thread.call(lambda thread=thread: look(thread))  # type: ignore[misc]
            self.loop.timer(judge).arm(self.loop.now() + PANIC_LOOK_NS)

        def judge() -> None:
            if not spinning:
                self._panic.message = ""
            elif looks > 1:
                self._watch_for_death(looks - 1)
            else:
                self.end(Outcome(End.PANIC, message=self._panic.message))

        self.loop.timer(ask).arm(self.loop.now() + PANIC_LOOK_NS)

    def on_exit(self, thread: VcpuThread, exit: Exit) -> None:
        """The exits that are not I/O."""
        who = f"vCPU {thread.vcpu.id}"
        match exit:
            case Shutdown():
                self._die(thread, End.TRIPLE_FAULT, f"{who}: KVM_EXIT_SHUTDOWN")
            case InternalError():
                self._die(thread, End.INTERNAL_ERROR, f"{who}: {exit.name}", exit.insn_bytes)
            case FailEntry(reason, cpu):
                self._die(
                    thread, End.INTERNAL_ERROR, f"{who}: KVM_EXIT_FAIL_ENTRY, reason {reason:#x} on host CPU {cpu}"
                )
            case SetTpr():
                pass  # the PIC knows no priorities of a processor
            case SystemEvent(kind) if kind == KVM_SYSTEM_EVENT_RESET:
                self.reset_requested("KVM_SYSTEM_EVENT_RESET")
            case SystemEvent(kind):
                self._die(thread, End.PANIC, f"{who}: KVM_EXIT_SYSTEM_EVENT {kind}")
            case UnknownExit(reason):
                self._die(thread, End.INTERNAL_ERROR, f"{who}: unknown exit {reason}")
            case _:
                self._die(thread, End.INTERNAL_ERROR, f"{who}: unexpected {exit}")

    def _die(self, thread: VcpuThread, end: End, message: str, insn_bytes: bytes = b"") -> None:
        if self.outcome is None:
            self._dead, self._insn = thread.vcpu, insn_bytes
            self.end(Outcome(end, message=message))

    def on_error(self, thread: VcpuThread | None, error: BaseException) -> None:
        """End the machine, for what came out of *thread*, or of the loop: KVM_RUN failed, a device of the user's raised
        or returned what it may not, or there is a bug of ours, which run() raises again."""
        from pyvmm.machine import fault  # as late as this: it is needed once

        if thread is not None and isinstance(error, KvmError) and error.request == "KVM_RUN":
            self._die(thread, End.INTERNAL_ERROR, f"vCPU {thread.vcpu.id}: {error}")
            return
        if (outcome := fault.outcome_of(error, self.pci)) is not None:
            self.end(outcome)
            return
        if self._error is None:
            self._error = error
        self.end(Outcome(End.INTERNAL_ERROR, message=one_line(error)))

    # What the host does

    def end(self, outcome: Outcome) -> None:
        """End the machine, once: the first outcome stands. From any thread or signal handler, lock held or not."""
        if self.outcome is None:
            self.outcome = outcome
            for thread in self.threads:
                thread.stop()
            self.loop.stop()

    def hold(self, held: bool) -> None:
        """Hold the vCPUs at their next exit while their output has nowhere to go, or let them go on."""
        for thread in self.threads:
            if held:
                thread.throttled = True
            else:
                thread.resume()

    def inject_nmi(self) -> None:
        """The NMI button: every vCPU gets one, unless the guest has masked NMIs through port 0x70."""
        if not self.nmi_masked:
            for thread in self.threads:
                thread.nmi()

    def start(self) -> None:
        """Start the vCPUs, once; run() and wait() do it by themselves."""
        if not self._started:
            self._started = True
            for thread in self.threads:
                thread.start()

    def wait(self, condition: Callable[[], bool], timeout: float = 10.0) -> bool:
        """Serve the machine until *condition*, asked under the machine lock, is true; False if *timeout* seconds pass
        or the guest ends before. Then the vCPUs run on, but timers and input wait for the next wait() or run()."""
        self.start()
        deadline = time.monotonic() + timeout
        while True:
            with self.lock:
                if condition():
                    return True
            if self.outcome is not None or time.monotonic() >= deadline:
                return False
            try:
                self.loop.run_once(LOOK_S)
            except BaseException as error:
                self._loop_error(error)
                if self._error is not None:
                    raise

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends or end() is called; *timeout* in seconds. Raises what a device of ours raised, and
        what a callback of the caller's did."""
        if timeout is not None:
            expired = self.loop.timer(lambda: self.end(Outcome(End.TIMEOUT, message=f"after {timeout:g} s")))
            expired.arm(self.loop.now() + int(timeout * 1e9))
        try:
            if self.outcome is None:
                self.start()
                self.loop.run()
        except BaseException as error:
            self._loop_error(error)
        finally:
            self.join()
        if self._error is not None:
            raise self._error
        assert self.outcome is not None
        if self.outcome.end in REPORTED and not self.outcome.report:
            self.outcome = replace(self.outcome, report=self.report())
        return self.outcome

    def _loop_error(self, error: BaseException) -> None:
        """What came out of the loop is a device's, or is raised again: for wait() or run(), or as Ctrl-C at once."""
        if is_ctrl_c(error):
            raise error
        self.on_error(None, error)

    def join(self) -> None:
        """Stop the vCPUs and wait until their threads have ended; the machine lock must not be held."""
        for thread in self.threads:
            thread.stop()
        for thread in self.threads:
            thread.join()

    def report(self) -> str:
        """The state of the vCPU that died, or of all; only while they do not run."""
        vcpus = [self._dead] if self._dead is not None else self.vcpus
        return "\n".join(vcpu_report(vcpu, self.memory, self._insn) for vcpu in vcpus)
