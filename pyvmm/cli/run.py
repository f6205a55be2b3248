"""`pyvmm run`: a machine with its console on this terminal, until the guest ends."""

from __future__ import annotations

import atexit
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvm_cffi import CpuidEntry
from pyvmm import guests
from pyvmm.cli.backend import NO_LINUX, backend, is_linux
from pyvmm.cli.signals import ENDING, handled, stop_process
from pyvmm.cli.stdio import complain
from pyvmm.cli.stuck import Watch
from pyvmm.config import HostConfig, MachineConfig
from pyvmm.errors import UserError
from pyvmm.host.console import Console
from pyvmm.host.session import Session
from pyvmm.host.trace_file import TraceWriter
from pyvmm.machine.kvm import open_kvm
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import DeviceFault, End, Outcome

if TYPE_CHECKING:
    from pyvmm.cli.needs import Parse
    from pyvmm.host.streams import Streams


def _trace_writer(file: Path | None) -> TraceWriter:
    """Where the trace goes: *file*, or stderr."""
    if file is None:
        return TraceWriter(sys.stderr)
    try:
        return TraceWriter(open(file, "w"))  # open as long as the process
    except OSError as error:
        raise UserError(f"--trace: cannot write {file}: {error.strerror}") from None


def _check_writable(flag: str, file: Path) -> None:
    """UserError where the file could not be written later; nothing is created yet."""
    try:
        try:
            os.stat(file)
        except FileNotFoundError:
            os.stat(file.parent)
            blocked = not os.access(file.parent, os.W_OK | os.X_OK)
        else:
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            blocked = not os.access(file, os.W_OK)
        if blocked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"{flag}: cannot write {file}: {error.strerror}") from None


POWERED_OFF: Final = 3
"""The exit status where that kept a command from ending: none of the command's is known, least of all 0."""
PATIENCE: Final = 2.0
"""Seconds that the machine gets to end by a signal before the next one ends the process."""


class Interrupted(BaseException):
    """A signal came while we waited for what may never come: a pipe that the machine boots from, an X server, a reader
    of the last of the output."""


def runs_linux() -> bool:
    """Whether Linux boots on the KVM that there is. Raises UserError where there is none."""

    def supported() -> list[CpuidEntry]:
        with open_kvm() as system:
            return system.get_supported_cpuid()

    return backend(supported).hardware


def allow_all_descriptors() -> None:
    """Raise the soft limit to the hard one: each vCPU, MSI or MSI-X vector and doorbell takes a descriptor.

    The soft limit is low for the sake of select(); eventfd.high_eventfd() keeps low descriptors for those that use it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # an unlimited one is more than the kernel lets a process have (fs.nr_open)
        pass


class _Run:
    """The machine on its console, and what signals do to it."""

    def __init__(
        self,
        make: Callable[[TraceWriter], Machine],
        host: HostConfig,
        trace: TraceWriter,
        parse: Parse,
        streams: Streams | None,
    ) -> None:
        self._make = make
        self._parse = parse
        self._host = host
        self._trace = trace
        self.streams = streams
        # Standard input and output are the command's, where the guest runs one.
        self.console = Console(0, 1) if streams is None else Console(os.open(os.devnull, os.O_RDONLY), 2)
        self._machine: Machine | None = None
        self._session: Session | None = None
        self._ended: Outcome | None = None
        self._ended_at = 0.0
        self._interruptible = False
        """An exception is all that is needed to give everything back."""

    # In a signal handler, which may have stopped the main thread anywhere; the machine runs on in its own threads

    def end(self, number: int) -> None:
        """A signal that ends the process ends the machine instead, so that everything is closed and restored. Where
        that does not come about, and Watch has not ended the process either, another signal does."""
        if self._ended is None:
            self._ended = Outcome(End.SIGNAL, number)
            self._ended_at = time.monotonic()
        elif time.monotonic() - self._ended_at > PATIENCE:
            atexit._run_exitfuncs()  # the terminal and the host's devices go back
            os._exit(128 + number)
        if self._machine is not None:
            self._machine.end(self._ended)
        if self._interruptible:
            raise Interrupted

    def stop(self, number: int) -> None:
        """SIGTSTP: the terminal is the user's while the process is stopped."""
        self._with_terminal("give_back")
        stop_process()
        self._with_terminal("take_again")

    def go_on(self, number: int) -> None:
        """SIGCONT, after SIGTSTP or after SIGSTOP, which nobody hears of."""
        self._with_terminal("take_again")

    def resized(self, number: int) -> None:
        """SIGWINCH: the guest's terminal is as large as ours."""
        if self._session is not None:
            self._with_terminal("resized")

    def _with_terminal(self, what: str) -> None:
        """Call a method of the session, or of the console before there is one, under the machine lock."""
        action = getattr(self._session or self.console, what)
        if self._machine is None:
            action()
            return
        try:
            self._machine.life.call(action, PATIENCE)
        except TimeoutError:  # a device holds the machine; the process stops or goes on all the same
            pass

    # All of it

    @contextmanager
    def _waiting(self, closing: bool = False) -> Iterator[None]:
        """What is inside may wait for somebody who never comes."""
        self._interruptible = True
        try:
            if self._ended is not None and not closing:  # the signal came when nothing could be interrupted
                raise Interrupted
            yield
        finally:
            self._interruptible = False

    def outcome(self) -> Outcome:
        """Run the machine until it ends."""
        signals: dict[signal.Signals, Callable[[int], None]] = {
            **dict.fromkeys(ENDING, self.end),
            signal.SIGTSTP: self.stop,
            signal.SIGCONT: self.go_on,
            signal.SIGWINCH: self.resized,
        }
        with handled(signals):
            try:
                try:
                    return self._run()
                finally:
                    with self._waiting(closing=True):
                        self.console.close()
                        if self.streams is not None:
                            self.streams.close()
            except Interrupted:
                assert self._ended is not None
                return self._ended
            except DeviceFault as fault:
                return fault.outcome

    def _run(self) -> Outcome:
        with self._waiting():
            machine = self._make(self._trace)
        self._warn(machine.config)
        write = self.console.write
        # A terminal that is not raw, or a file, has no use for a serial line's CR.
        machine.serial.add(write if self.streams is None else lambda data: write(data.replace(b"\r", b"")))
        timeout = self._host.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._watch(machine, deadline), machine:
            with self._waiting():
                session = Session(machine, self._host, self.console, self.streams)
            with self._timeline(machine), self._gdb(machine), self._qmp(machine), self._prompt(machine), session:
                self._machine, self._session = machine, session
                try:
                    if self._ended is not None:  # a signal came while there was no machine
                        machine.end(self._ended)
                    return machine.run(timeout)
                finally:
                    self._machine = self._session = None

    def _warn(self, config: MachineConfig) -> None:
        """Of a kernel that would be silent for ever, and of a guest that would wait so."""
        if config.guest is not None and (guest := guests.load(config.guest)).needs:
            from pyvmm.cli.needs import line

            if told := line(guest, config, self._host, self._parse):
                complain(f"pyvmm: {told}")
        kernel = config.kernel
        if kernel is not None and not config.flat and is_linux(kernel) and not runs_linux():
            complain(f"pyvmm: {NO_LINUX}")

    @contextmanager
    def _timeline(self, machine: Machine) -> Iterator[None]:
        """What the machine does is written to the file of --timeline, if there is one."""
        if self._host.timeline is None:
            yield
            return
        from pyvmm.control.timeline.timeline import Timeline
        from pyvmm.host.writer import Slowly

        slowly = Slowly(f"writing {self._host.timeline}", lambda text: complain(f"pyvmm: {text}"))
        with Timeline(machine, self._host.timeline, slowly) as timeline:
            yield
        if timeline.error is not None:
            complain(f"pyvmm: {timeline.error}")

    @contextmanager
    def _gdb(self, machine: Machine) -> Iterator[None]:
        """Where gdb may connect, if it may."""
        if self._host.gdb is None:
            yield
            return
        from pyvmm.control.gdb.server import GdbServer

        with GdbServer(machine, self._host.gdb, self._host.gdb_wait) as server:
            if self._host.gdb_wait:
                complain(f"pyvmm: waiting for gdb: target remote {server.address}")
            yield

    def _qmp(self, machine: Machine) -> AbstractContextManager[object]:
        """Where QMP's clients may connect, if they may."""
        if self._host.qmp is None:
            return nullcontext()
        from pyvmm.control.qmp.server import QmpServer

        return QmpServer(machine, self._host.qmp)

    def _prompt(self, machine: Machine) -> AbstractContextManager[object]:
        """Where `pyvmm attach` may connect, if it may."""
        if self._host.prompt is None:
            return nullcontext()
        from pyvmm.host.repl.server import PromptServer

        return PromptServer(machine, self._host.prompt)

    def _watch(self, machine: Machine, deadline: float | None) -> Watch:
        return Watch(machine, self.console, lambda: self._ended, deadline, self._trace.close)


def run(make: Callable[[TraceWriter], Machine], host: HostConfig, parse: Parse, streams: Streams | None = None) -> int:
    """Run the machine that *make* makes until it ends; the process's exit status. *parse* reads another command line.
    With *streams* its guest runs a command, whose standard input and output are ours."""
    allow_all_descriptors()
    for flag, file in (("--screenshot", host.screenshot), ("--save", host.save)):
        if file is not None:
            _check_writable(flag, file)
    trace = _trace_writer(host.trace_file)
    try:
        running = _Run(make, host, trace, parse, streams)
        outcome = running.outcome()
    finally:
        trace.close()
    if running.console.lost:
        complain(f"pyvmm: the guest's output went nowhere: {running.console.lost}")
    if streams is not None and outcome.end is End.POWER_OFF:
        complain("pyvmm: the guest powered off before the command ended")
        return POWERED_OFF
    if outcome.end not in (End.POWER_OFF, End.COMMAND):
        complain(f"pyvmm: {outcome}")
    if outcome.report:
        complain(outcome.report)
    return outcome.qemu_status if host.debug_exit == "qemu" else outcome.status
