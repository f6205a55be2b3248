"""What a timeline costs an exit: guests/pio-bench without and with one, in one process.

The guest times its own loops with the TSC, so what is left at the end, making messages of most records, does not count;
it is timed by itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.document import table
from benchmarks.pio import UART_SCR, tsc_hz
from benchmarks.programs import BenchError, say
from benchmarks.stats import Runs, in_turn, spread
from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.control.timeline.timeline import Timeline
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome

ACCESSES: Final = 40_000
TIMEOUT: Final = 60.0
OFF, ON = "without a timeline", "with one"
GOAL: Final = 2.0
"""µs an exit more."""


class Costs:
    """The runs, and what they measured beside the µs of a port write that they return."""

    def __init__(self, accesses: int, hz: int) -> None:
        self._accesses = accesses
        self._hz = hz
        self.reads: Runs = {OFF: [], ON: []}
        self.left: list[float] = []
        """µs a record at the end."""

    def run(self, name: str) -> float:
        count = self._accesses
        parameters = (("outs", count), ("ins", count), ("port", UART_SCR))
        symbols = guests.load("pio-bench").symbols
        config = MachineConfig(guest="pio-bench", guest_parameters=parameters)
        with tempfile.TemporaryDirectory() as directory, Machine(config) as machine:
            timeline = Timeline(machine, Path(directory) / "timeline") if name == ON else None
            outcome = machine.run(TIMEOUT)
            if outcome != Outcome(End.DEBUG_EXIT, 0):
                raise BenchError(f"pio-bench: {outcome}")
            if timeline is not None:
                start = time.perf_counter()
                timeline.close()
                self.left.append((time.perf_counter() - start) / (2 * count) * 1e6)
            out, read = (machine.memory.read_int(symbols[one], 8) for one in ("out_cycles", "in_cycles"))
        self.reads[name].append(read / count / self._hz * 1e6)
        return out / count / self._hz * 1e6

    def contenders(self) -> dict[str, Callable[[], float]]:
        return {name: lambda name=name: self.run(name) for name in (OFF, ON)}  # type: ignore[misc]


def report(writes: Runs, reads: Runs, left: list[float]) -> str:
    rows = [[name, spread(writes[name], 2), spread(reads[name], 2)] for name in (OFF, ON)]
    more = [[on - off for off, on in zip(runs[OFF], runs[ON], strict=True)] for runs in (writes, reads)]
    verdicts = [f"{spread(one, 2)}, {'met' if median(one) <= GOAL else 'missed'}" for one in more]
    rows.append([f"more, at most {GOAL:g}", *verdicts])
    text = table(["µs an exit (least–most)", "port write", "port read"], rows)
    return f"{text}\n\nMaking messages of a record, at the end: {spread(left, 2)} µs."


def measure(rounds: int) -> str:
    costs = Costs(ACCESSES, tsc_hz())
    writes = in_turn(costs.contenders(), rounds, say)
    return report(writes, costs.reads, costs.left)
