"""`pyvmm run`: a machine with its console on this terminal, until the guest ends; again, where it resets."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from .boot.error import BootError
from .config import HostConfig, MachineConfig
from .console import Console
from .errors import UserError
from .machine import Machine
from .outcome import End, Outcome
from .session import Session
from .trace_writer import TraceWriter

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def ending_signals(end: Callable[[Outcome], None]) -> Iterator[None]:
    """Let the signals that end a process end the machine instead, so that everything is closed and restored; one that
    is ignored (nohup) stays so."""

    def handler(number: int, frame: FrameType | None) -> None:
        end(Outcome(End.SIGNAL, number))

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _trace_writer(file: Path | None) -> TraceWriter:
    """Where the trace goes: *file*, or stderr."""
    if file is None:
        return TraceWriter(sys.stderr)
    try:
        return TraceWriter(open(file, "w"))  # open as long as the process
    except OSError as error:
        raise UserError(f"--trace: cannot write {file}: {error.strerror}") from None


class Interrupted(BaseException):
    """A signal came while a machine was being made: the file that it boots from may be a pipe that nobody writes to."""


def open_standard_descriptors() -> None:
    """Open those that were closed on /dev/null, so that nothing of the machine's gets their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def allow_all_descriptors() -> None:
    """Raise the soft limit to the hard one: each vCPU, MSI or MSI-X vector and doorbell takes a descriptor.

    The soft limit is low for the sake of select(); eventfds.high_eventfd() keeps low descriptors for those that use it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # an unlimited one is more than the kernel lets a process have (fs.nr_open)
        pass


def run(config: MachineConfig, host: HostConfig) -> int:
    """Run machines as *config* says until one ends otherwise than by a reset; the process's exit status."""
    open_standard_descriptors()
    allow_all_descriptors()
    trace = _trace_writer(host.trace_file) if config.trace else None
    console = Console(0, 1)
    current: list[Machine] = []
    ended: list[Outcome] = []
    making = False
    deadline = None if host.timeout is None else time.monotonic() + host.timeout
    nvram = b""

    def end(outcome: Outcome) -> None:
        """In a signal handler, which may have stopped anything half-way: the loop does the work."""
        ended.append(outcome)
        for machine in current:
            machine.loop.post(partial(machine.end, outcome))
        if making:
            raise Interrupted

    try:
        with ending_signals(end):
            while True:
                making = True
                try:
                    machine = Machine(config, console.write, trace, nvram)
                except BootError as error:
                    raise UserError(str(error)) from None
                finally:
                    making = False
                with machine, Session(machine, host, console):
                    current[:] = [machine]
                    if ended:  # a signal came while there was no machine
                        machine.end(ended[0])
                    outcome = machine.run(None if deadline is None else max(0.0, deadline - time.monotonic()))
                    nvram = machine.rtc.nvram
                    current.clear()
                if outcome.end is not End.RESET or host.no_reboot:
                    break
    except Interrupted:
        outcome = ended[0]
    finally:
        console.close()
        if trace is not None:
            trace.close()
    if outcome.end is End.TIMEOUT:
        outcome = replace(outcome, message=f"after {host.timeout:g} s")  # in all, whatever was left for the last start
    try:
        if outcome.end is not End.POWER_OFF:
            print(f"pyvmm: {outcome}", file=sys.stderr)
        if outcome.report:
            print(outcome.report, file=sys.stderr)
    except OSError:  # nobody reads it; the status still says how the guest ended
        pass
    return outcome.status
