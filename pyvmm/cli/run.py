"""`pyvmm run`: a machine with its console on this terminal, until the guest ends; again, where it resets."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pyvmm.cli.signals import ENDING, handled, stop_process
from pyvmm.cli.stdio import complain
from pyvmm.cli.stuck import Watch
from pyvmm.config import HostConfig, MachineConfig
from pyvmm.errors import UserError
from pyvmm.host.console import Console
from pyvmm.host.session import Session
from pyvmm.host.trace_file import TraceWriter
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import DeviceFault, End, Outcome


def _trace_writer(file: Path | None) -> TraceWriter:
    """Where the trace goes: *file*, or stderr."""
    if file is None:
        return TraceWriter(sys.stderr)
    try:
        return TraceWriter(open(file, "w"))  # open as long as the process
    except OSError as error:
        raise UserError(f"--trace: cannot write {file}: {error.strerror}") from None


PATIENCE: Final = 2.0
"""Seconds that the machine gets to end by a signal before the next one ends the process."""


class Interrupted(BaseException):
    """A signal came while we waited for what may never come: a pipe that the machine boots from, an X server, a reader
    of the last of the output."""


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
    """Machines one after another, on one console; and what signals do to the one that runs."""

    def __init__(self, config: MachineConfig, host: HostConfig, trace: TraceWriter | None) -> None:
        self._config = config
        self._host = host
        self._trace = trace
        self.console = Console(0, 1)
        self._machine: Machine | None = None
        self._session: Session | None = None
        self._ended: Outcome | None = None
        self._ended_at = 0.0
        self._requests: deque[Callable[[], None]] = deque()
        self._interruptible = False
        """An exception is all that is needed to give everything back."""

    # In a signal handler, which may have stopped anything half-way: the loop does the work

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
            self._machine.loop.post(partial(self._machine.end, self._ended))
        if self._interruptible:
            raise Interrupted

    def stop(self, number: int) -> None:
        """SIGTSTP: the terminal is the user's while the process is stopped."""
        self._request(self._stop)

    def go_on(self, number: int) -> None:
        """SIGCONT, after SIGTSTP or after SIGSTOP, which nobody hears of."""
        self._request(self._take_again)

    def _request(self, request: Callable[[], None]) -> None:
        if request not in self._requests:
            self._requests.append(request)
        if self._machine is not None:
            self._machine.loop.post(self._serve)
        else:
            self._serve()

    # In the loop, under the machine lock; or where there is no machine

    def _serve(self) -> None:
        while self._requests:
            self._requests.popleft()()

    def _stop(self) -> None:
        user = self._session or self.console
        user.give_back()
        stop_process()
        user.take_again()

    def _take_again(self) -> None:
        (self._session or self.console).take_again()

    # All of it

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """What is inside may wait for somebody who never comes."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def outcome(self) -> Outcome:
        """Run machines until one ends otherwise than by a reset."""
        signals: dict[signal.Signals, Callable[[int], None]] = {
            **dict.fromkeys(ENDING, self.end),
            signal.SIGTSTP: self.stop,
            signal.SIGCONT: self.go_on,
        }
        with handled(signals):
            try:
                try:
                    return self._machines()
                finally:
                    with self._waiting():
                        self.console.close()
            except Interrupted:
                assert self._ended is not None
                return self._ended
            except DeviceFault as fault:
                return fault.outcome

    def _machines(self) -> Outcome:
        timeout = self._host.timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        nvram = b""
        while True:
            with self._waiting():
                machine = Machine(self._config, self.console.write, self._trace, nvram)
            with self._watch(machine, deadline), machine:
                with self._waiting():
                    session = Session(machine, self._host, self.console)
                with session:
                    self._machine, self._session = machine, session
                    try:
                        if self._ended is not None:  # a signal came while there was no machine
                            machine.end(self._ended)
                        outcome = machine.run(None if deadline is None else max(0.0, deadline - time.monotonic()))
                        nvram = machine.rtc.nvram
                    finally:
                        self._machine = self._session = None
                        self._serve()
            if outcome.end is End.TIMEOUT:
                return replace(outcome, message=f"after {timeout:g} s")  # in all, whatever was left for the last start
            if outcome.end is not End.RESET or self._host.no_reboot:
                return outcome

    def _watch(self, machine: Machine, deadline: float | None) -> Watch:
        last_words = self._trace.close if self._trace is not None else lambda: None
        return Watch(machine, self.console, lambda: self._ended, deadline, last_words)


def run(config: MachineConfig, host: HostConfig) -> int:
    """Run machines as *config* says until one ends otherwise than by a reset; the process's exit status."""
    allow_all_descriptors()
    trace = _trace_writer(host.trace_file) if config.trace else None
    try:
        machines = _Run(config, host, trace)
        outcome = machines.outcome()
    finally:
        if trace is not None:
            trace.close()
    if machines.console.lost:
        complain(f"pyvmm: the guest's output went nowhere: {machines.console.lost}")
    if outcome.end is not End.POWER_OFF:
        complain(f"pyvmm: {outcome}")
    if outcome.report:
        complain(outcome.report)
    return outcome.status
