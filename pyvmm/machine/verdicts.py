"""What the board's chips and the vCPUs' exits mean for the machine: a reset, a panic, an end, and which one is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from kvm_cffi import Exit, KvmError, Vcpu
from kvm_cffi.constants import KVM_SYSTEM_EVENT_CRASH
from kvm_cffi.exits import Debug, Hlt, Shutdown, SystemEvent
from pyvmm.boot.no_bios import BIOS_CALL
from pyvmm.config import MachineConfig
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.firmware import BIOS
from pyvmm.machine.life import Life
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.panic import DeathWatch
from pyvmm.tap import Tap
from pyvmm.vcpu.bios_call import find_bios_call, leave_bios_call
from pyvmm.vcpu.thread import VcpuThread

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.boot.entry import CpuState
    from pyvmm.machine.sampling import Sampler
    from pyvmm.report.symbols import Symbols
    from pyvmm.vcpu.group import VcpuGroup


BIOS_ENDS: Final = {
    0xB5: (End.NO_BOOT_DISK, "No boot disk: ", "give a disk or floppy whose first 512 bytes end with 55 AA"),
    0xB6: (End.UNHANDLED_EXCEPTION, "Exception ", "the program has no handler for it"),
}
"""What our BIOS (firmware/bios) says by a command of APM: the end, how its line on the screen begins, what to add."""


class Verdicts:
    """The board's Signals and the exit loop's ExitHandler."""

    def __init__(self, config: MachineConfig, life: Life, serial: Tap[bytes]) -> None:
        self._config = config
        self._life = life
        self._serial = serial
        self._panic = DeathWatch(life)
        self._death: tuple[Vcpu, Exit | KvmError] | None = None
        self._symbols = _load_symbols(config)
        self._sampler: Sampler | None = None
        life.timed_out = self.timed_out
        self._cpus: VcpuGroup | None = None
        self._sleeps = self._woken = 0
        """Numbers of the last S3 that has begun and of the last that was to end."""

    def adopt(self, cpus: VcpuGroup, board: Pc, begin_at: Callable[[CpuState], None]) -> None:
        """The machine is whole; *begin_at* resets the vCPUs and lets the first begin somewhere."""
        self._cpus, self._board, self._begin_at = cpus, board, begin_at

    # What chips tell (board.pc.Signals)

    def transmit(self, data: bytes) -> None:
        """Everything that the guest sends on its console: a panic is first seen there."""
        self._serial(data)
        self._panic.feed(data)

    def reset_requested(self, how: str) -> None:
        """The guest pulled one of the reset lines; a kernel that resets after a panic has panicked."""
        if self._panic.message:
            self._life.events(MachineEvent("panicked", self._panic.message))
            self._life.end(Outcome(End.PANIC, message=self._panic.message))
        elif self._config.no_reboot:
            self._life.end(Outcome(End.RESET, message=how))
        else:
            self._life.reset(how)

    def power_off(self) -> None:
        self._life.events(MachineEvent("powered-off"))
        self._life.end(Outcome(End.POWER_OFF))

    def debug_exit(self, value: int) -> None:
        self._life.end(Outcome(End.DEBUG_EXIT, value))

    def smi(self, command: int) -> None:
        """Our BIOS has come to an end, or the code that stands for one says that the guest has come to it; no other
        command means anything."""
        if command in BIOS_ENDS and self._config.firmware == BIOS:
            self._bios_has_ended(*BIOS_ENDS[command])
            return
        threads = self._cpus.threads if self._cpus is not None else ()
        vcpu = next((thread.vcpu for thread in threads if thread.is_current), None)
        if command != BIOS_CALL or vcpu is None or (call := find_bios_call(vcpu, self._board.memory)) is None:
            return
        report = ""
        if call.exception:
            from pyvmm.report.page import vcpu_report

            leave_bios_call(vcpu, call)
            report = vcpu_report(vcpu, self._board.memory)
        self._life.end(Outcome(End.NO_BIOS, message=call.message, report=report))

    def _bios_has_ended(self, end: End, begins: str, advice: str) -> None:
        """It has written why to the screen, last."""
        from pyvmm.screen.screen import Screen

        lines = [line.rstrip() for line in Screen.of(self._board.vga).text()]
        said = next((line for line in reversed(lines) if line), "")
        self._life.end(Outcome(end, message=f"{said.removeprefix(begins)}: {advice}"))

    def sleep(self) -> bool:
        """S3 begins, before a vCPU executes anything more. A firmware that is not ours has tables of its own, and the
        way back goes through it: then there is no S3."""
        if self._config.firmware not in (None, BIOS):
            return False
        self._sleeps += 1
        self._life.before_going_on(partial(self._fall_asleep, self._sleeps))
        return True

    def _fall_asleep(self, number: int) -> None:
        if number == self._sleeps:  # else a reset came between
            self._life.cpus.asleep = True
            self._life.events(MachineEvent("sleep"))

    def wake(self, reason: str) -> None:
        """S3 ends: soon, for the vCPUs begin anew, which only the loop's thread can do."""
        if self._woken != self._sleeps:
            self._woken = self._sleeps
            self._life.before_going_on(partial(self._wake, self._sleeps, reason))

    def _wake(self, number: int, reason: str) -> None:
        if number != self._sleeps or not self._board.acpi_pm.asleep:
            return
        from pyvmm.machine.waking import waking_state  # few machines sleep

        with self._life.lock:
            self._life.cpus.catch_up()
            self._board.acpi_pm.woken()
            self._life.events(MachineEvent("wake", reason))
            state = waking_state(self._board.memory)
            if state is None:
                self._life.reset("no waking vector")  # until when the vCPUs have nothing to go on with
            else:
                self._begin_at(state)
                self._life.cpus.asleep = False

    def fell_asleep_before(self) -> None:
        """What was loaded of a snapshot sleeps, or does not."""
        self._sleeps += 1
        self._life.cpus.asleep = self._board.acpi_pm.asleep
        self._board.acpi_pm.wake_if_due()

    def wake_boot_cpu(self) -> None:
        if self._cpus is not None:  # the PIC is there first
            self._cpus.wake_boot_cpu()

    def io_error(self, line: str) -> None:
        self._life.events(MachineEvent("io-error", line))

    def catch_up(self) -> None:
        if self._cpus is not None:
            self._cpus.catch_up()

    # What exits lead to (vcpu.exits.ExitHandler)

    def eoi(self, vector: int) -> None:
        self._board.irqchip.eoi(vector)

    def triple_fault(self, vcpu: Vcpu, message: str) -> None:
        if self._config.triple_fault == "reset":
            self.reset_requested("triple fault")
        else:
            self._die(vcpu, End.TRIPLE_FAULT, message, Shutdown())

    def internal_error(self, vcpu: Vcpu, message: str, exit: Exit) -> None:
        self._die(vcpu, End.INTERNAL_ERROR, message, exit)

    def crashed(self, vcpu: Vcpu, message: str) -> None:
        self._die(vcpu, End.PANIC, message, SystemEvent(KVM_SYSTEM_EVENT_CRASH, ()))

    def debugged(self, vcpu: Vcpu, exit: Debug | Hlt) -> bool:
        debugger = self._cpus.debugger if self._cpus is not None else None
        if debugger is None:
            return False
        debugger(vcpu, exit)
        return True

    def on_vcpu_error(self, thread: VcpuThread, error: BaseException) -> None:
        """End the machine, for what came out of *thread*."""
        if isinstance(error, KvmError) and error.request == "KVM_RUN":
            self._die(thread.vcpu, End.INTERNAL_ERROR, f"vCPU {thread.vcpu.id}: {error}", error)
        else:
            self.on_error(error)

    def on_error(self, error: BaseException) -> None:
        """End the machine, for what came out of a vCPU's thread or of the loop: a device of the user's raised or
        returned what it may not, or there is a bug of ours, which run() raises again."""
        from pyvmm.machine import fault  # as late as this: it is needed once

        outcome = fault.outcome_of(error, self._board.pci)
        if outcome is not None:
            self._life.end(outcome)
        else:
            self._life.fail(error)

    def _die(self, vcpu: Vcpu, end: End, message: str, reason: Exit | KvmError) -> None:
        if self._life.outcome is None:
            self._death = vcpu, reason
            self._life.end(Outcome(end, message=message))

    # For the life

    def restarted(self) -> None:
        """The machine has been reset: what was seen before is over."""
        self._sleeps += 1
        self._panic.restarted()

    def timed_out(self, outcome: Outcome) -> None:
        """End with *outcome*, after a few looks at where the vCPUs are."""
        from pyvmm.machine.sampling import Sampler  # as late as this: what is told of an end is needed once

        self._sampler = Sampler(self._life)
        self._sampler.look_and_end(outcome)

    def report(self) -> str:
        """Why the machine ended; only while no vCPU runs."""
        from pyvmm.machine import autopsy

        outcome = self._life.outcome
        assert outcome is not None
        return autopsy.report(
            outcome.end,
            autopsy.Death(*self._death) if self._death is not None else None,
            self._life.cpus.seated,
            self._board.memory,
            self._symbols,
            self._sampler.samples if self._sampler is not None else self._panic.samples,
            autopsy.shortened(self._panic.text()),
        )


def _load_symbols(config: MachineConfig) -> Symbols | None:
    if config.symbols is None:
        return None
    from pyvmm.report.symbols import load_symbols

    return load_symbols(config.symbols)
