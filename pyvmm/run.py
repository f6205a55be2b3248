"""`pyvmm run`: a machine with its console on this terminal, until the guest ends; again, where it resets."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .boot.error import BootError
from .config import MachineConfig
from .console import Console
from .errors import UserError
from .machine import Machine
from .outcome import End, Outcome
from .trace import Sink, text_sink

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def ending_signals(end: Callable[[Outcome], None]) -> Iterator[None]:
    """Let the signals that end a process end the machine instead, so that everything is closed and restored."""

    def handler(number: int, frame: FrameType | None) -> None:
        end(Outcome(End.SIGNAL, number))

    old = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _trace_sink(option: str | None) -> Sink | None:
    """--trace CHANNEL,...[=FILE]: to FILE, or to stderr."""
    if not option:
        return None
    _, to_file, path = option.partition("=")
    if not to_file:
        return text_sink(sys.stderr)
    try:
        return text_sink(open(path, "w"))  # open as long as the process
    except OSError as error:
        raise UserError(f"--trace: cannot write {path}: {error.strerror}") from None


def run(config: MachineConfig, timeout: float | None, no_reboot: bool, trace: str | None) -> int:
    """Run machines as *config* says until one ends otherwise than by a reset; the process's exit status."""
    sink = _trace_sink(trace)
    console = Console(0, 1)
    current: list[Machine] = []

    def end(outcome: Outcome) -> None:
        for machine in current:
            machine.end(outcome)

    try:
        with ending_signals(end):
            while True:
                try:
                    machine = Machine(config, console.write, sink)
                except BootError as error:
                    raise UserError(str(error)) from None
                with machine:
                    current[:] = [machine]
                    machine.attach_console(console)
                    outcome = machine.run(timeout)
                    console.detach()
                if outcome.end is not End.RESET or no_reboot:
                    break
    finally:
        console.close()
    if outcome.end is not End.POWER_OFF:
        print(f"pyvmm: {outcome}", file=sys.stderr)
    if outcome.report:
        print(outcome.report, file=sys.stderr)
    return outcome.status
