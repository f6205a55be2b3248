"""A machine out of a file: exec to the first KVM_RUN, for little and much RAM; and what a guest pays for a snapshot."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.programs import PYVMM, compiled, output_of, say
from benchmarks.reset import PAGES, dirtying, until
from benchmarks.start import KVM_RUN, at, calls
from benchmarks.stats import in_turn, paired_ratio, spread, verdict
from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.units import GIB, MIB, size_text

GOAL: Final = 1.3
"""Times a plain start."""
SIZES: Final = (128 * MIB, 2 * GIB)
PASSES: Final = 100


def saved(path: Path, memory: int) -> int:
    """A file of a machine with so much RAM, a quarter of it touched; its size on the disk in bytes."""
    noise = random.Random(memory).randbytes(MIB)
    with Machine(MachineConfig(guest="hello", memory=memory)) as machine:
        for _, length in machine.memory.regions[-1:]:
            for gpa in range(MIB, length, 4 * MIB):
                machine.memory.write(gpa, noise)
        machine.start()
        machine.snapshot().save(path)
    return path.stat().st_blocks * 512


class Pace:
    """guests/dirty, which writes a pass of PAGES pages after another, with and without a snapshot held."""

    def __init__(self) -> None:
        self._machine = Machine(dirtying(PAGES))
        self._done = guests.load("dirty").symbols["done"]
        self._machine.start()

    def _passes(self) -> float:
        """µs a page."""
        memory = self._machine.memory
        self._machine.resume("measured")
        first = memory.read_int(self._done, 4)
        until(lambda: memory.read_int(self._done, 4) > first, "a pass of the guest")
        first, start = memory.read_int(self._done, 4), time.perf_counter()
        until(lambda: memory.read_int(self._done, 4) >= first + PASSES, "passes of the guest")
        passes = memory.read_int(self._done, 4) - first
        passed = time.perf_counter() - start
        self._machine.pause("measured")
        return passed * 1e6 / passes / PAGES

    def without(self) -> float:
        return self._passes()

    def held(self) -> float:
        """One is taken, and the guest runs on: of each page the first write is logged."""
        snapshot = self._machine.snapshot()
        try:
            return self._passes()
        finally:
            del snapshot

    def first_pass(self, snapshot: bool) -> float:
        """µs a page of the two passes after a snapshot, or of any two: each page's first write is among them."""
        memory = self._machine.memory
        with self._machine.paused("measured"):
            kept = self._machine.snapshot() if snapshot else None
            first, start = memory.read_int(self._done, 4), time.perf_counter()
            self._machine.resume("measured")
        until(lambda: memory.read_int(self._done, 4) >= first + 2, "passes of the guest")
        passed = time.perf_counter() - start
        self._machine.pause("measured")
        del kept
        return passed * 1e6 / 2 / PAGES

    def close(self) -> None:
        self._machine.close()


@contextmanager
def pace() -> Iterator[Pace]:
    measured = Pace()
    try:
        yield measured
    finally:
        measured.close()


def measure(rounds: int) -> str:
    tracer = compiled("kvm_calls")

    def traced(*words: object) -> Callable[[], float]:
        command: list[str | Path] = [tracer, PYVMM, "run", *map(str, words)]
        return lambda: at(calls(output_of(command, 0)), KVM_RUN)

    with tempfile.TemporaryDirectory() as directory:
        programs, sizes = {"plain": traced("hello")}, {}
        for memory in SIZES:
            path = Path(directory) / size_text(memory)
            sizes[memory] = saved(path, memory)
            programs[size_text(memory)] = traced("--restore", path)
        for program in programs.values():
            program()  # what is not in the page cache yet is not pyvmm's
        times = in_turn(programs, rounds, say)
    rows = [["`pyvmm run hello`", spread(times["plain"], 0), "1.00"]]
    ratios = []
    for memory in SIZES:
        name = size_text(memory)
        ratios.append(paired_ratio(times[name], times["plain"]))
        what = f"`--restore`, {name} of RAM, {sizes[memory] // MIB} MiB in the file"
        rows.append([what, spread(times[name], 0), f"{ratios[-1]:.2f}"])
    text = table(["exec to the first KVM_RUN", "ms (least–most)", "times a plain start"], rows)
    text += f"\n\n{verdict(max(ratios), GOAL)}. ".replace("\n\ngoal", "\n\nGoal")
    text += f"What guests/dirty pays for a write to each of {PAGES} pages, again and again:\n\n"
    with pace() as measured:
        passes = in_turn(
            {
                "without": measured.without,
                "held": measured.held,
                "first, without": lambda: measured.first_pass(False),
                "first, held": lambda: measured.first_pass(True),
            },
            rounds,
            say,
        )
    rows = [
        ["no snapshot", spread(passes["without"], 3)],
        [f"while one is held, {PASSES} passes", spread(passes["held"], 3)],
        ["no snapshot, two passes from a standstill", spread(passes["first, without"], 3)],
        ["two passes from the snapshot on", spread(passes["first, held"], 3)],
    ]
    return text + table(["", "µs a page (least–most)"], rows)
