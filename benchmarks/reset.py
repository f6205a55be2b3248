"""A guest that has dirtied 1,000 pages of 128 MiB goes back: machine.restore(), QEMU's loadvm, or a machine anew."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.document import table
from benchmarks.programs import BenchError, say
from benchmarks.stats import in_turn, spread
from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.units import MIB

GOAL_MS: Final = 1.0
PAGES: Final = 1000
TIMES: Final = 20
"""Restores a round; the round's value is their median."""
PATIENCE: Final = 60.0
"""Seconds for a pass of the guest, which takes some milliseconds."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for the guest; BenchError where it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not come within {PATIENCE:g} s")
        time.sleep(0.001)


def dirtying(pages: int) -> MachineConfig:
    """guests/dirty, without end."""
    return MachineConfig(guest="dirty", guest_parameters=(("passes", 0), ("pages", pages)), memory=128 * MIB)


class Ours:
    """guests/dirty in a machine of this process, and what each part of a restore takes."""

    def __init__(self, pages: int) -> None:
        self._machine = Machine(dirtying(pages))
        self._done = guests.load("dirty").symbols["done"]
        self.parts: dict[str, list[float]] = defaultdict(list)
        self._machine.start()
        self._passes(2)
        self._snapshot = self._machine.snapshot()
        self._machine.pause()  # while others are measured
        self.size = self._snapshot.size
        machine = self._machine
        self._restore: list[tuple[Any, str, str]] = [
            (machine.life, "_stand_still", "pause"),
            (machine.snapshots.ram, "harvest", "dirty log, and protecting again"),
            (machine.snapshots.ram, "put_back", "copy"),
            (machine.board.parts, "load", "chips"),
            (machine.life.cpus, "load", "vCPU"),
            (machine.life, "_go_on", "resume"),
        ]

    def _passes(self, count: int) -> None:
        memory, last = self._machine.memory, self._machine.memory.read_int(self._done, 4) + count
        until(lambda: memory.read_int(self._done, 4) >= last, "a pass of the guest")

    def restore(self) -> float:
        """ms of restore(), the median of some, each after two passes."""
        return self._restores(lambda: self._passes(2))

    def again(self) -> float:
        """ms of restore() when the guest has hardly run since."""
        return self._restores(lambda: self._machine.restore(self._snapshot))

    def _restores(self, before: Callable[[], None]) -> float:
        self._machine.resume()
        times = []
        for _ in range(TIMES):
            before()
            start = time.perf_counter()
            self._machine.restore(self._snapshot)
            times.append((time.perf_counter() - start) * 1e3)
        self._machine.pause()
        return median(times)

    def by_parts(self) -> None:
        """The same with a clock around each part, into `parts`."""
        with_clock: list[tuple[Any, str]] = []
        for owner, method, part in self._restore:
            original = getattr(owner, method)

            def timed(*arguments: Any, original: Any = original, part: str = part) -> Any:
                start = time.perf_counter()
                result = original(*arguments)
                self.parts[part].append((time.perf_counter() - start) * 1e3)
                return result

            setattr(owner, method, timed)
            with_clock.append((owner, method))
        try:
            self.restore()
        finally:
            for owner, method in with_clock:
                delattr(owner, method)

    def close(self) -> None:
        self._machine.close()


def anew() -> float:
    """ms of a machine made and started; closing it is not counted."""
    start = time.perf_counter()
    with Machine(dirtying(PAGES)) as machine:
        machine.start()
        made = time.perf_counter()
    return (made - start) * 1e3


class Qemu:
    """The same bytes as a boot sector under QEMU, and its monitor."""

    def __init__(self, directory: Path) -> None:
        guest = guests.load("dirty")
        sector = bytearray(guest.image)
        for name, value in (("passes", 0), ("pages", PAGES)):
            start = guest.symbols[name] - guest.address
            sector[start : start + 4] = value.to_bytes(4, "little")
        raw, disk = directory / "disk.raw", directory / "disk.qcow2"
        raw.write_bytes(bytes(sector).ljust(MIB, b"\0"))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, disk], check=True)
        self._passes_file = directory / "passes"
        monitor = directory / "monitor"
        command = ["qemu-system-x86_64", "-accel", "kvm", "-M", "pc", "-m", "128", "-nodefaults", "-display", "none"]
        command += ["-drive", f"file={disk},if=ide", "-debugcon", f"file:{self._passes_file}"]
        self._process = subprocess.Popen([*command, "-qmp", f"unix:{monitor},server=on,wait=off"])
        until(monitor.exists, "QEMU's monitor")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(monitor))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self._execute("qmp_capabilities", {})
        self._passes(2)
        self._monitor("savevm s")
        self._monitor("stop")

    def _execute(self, what: str, arguments: dict[str, str]) -> object:
        self._file.write(json.dumps({"execute": what, "arguments": arguments}) + "\n")
        self._file.flush()
        while "return" not in (answer := json.loads(self._file.readline())):
            if "error" in answer:
                raise BenchError(f"QEMU: {answer['error']['desc']}")
        return answer["return"]

    def _monitor(self, line: str) -> None:
        said = self._execute("human-monitor-command", {"command-line": line})
        if said:
            raise BenchError(f"QEMU: {line}: {said}")

    def _passes(self, count: int) -> None:
        def done() -> int:
            return self._passes_file.stat().st_size if self._passes_file.exists() else 0

        last = done() + count
        until(lambda: done() >= last, "a pass of the guest under QEMU")

    def loadvm(self) -> float:
        """ms of loadvm, monitor included."""
        self._monitor("cont")
        self._passes(2)
        start = time.perf_counter()
        self._monitor("loadvm s")
        passed = (time.perf_counter() - start) * 1e3
        self._monitor("stop")
        return passed

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


@contextmanager
def contenders() -> Iterator[tuple[Ours, Ours, Qemu]]:
    with tempfile.TemporaryDirectory() as directory:
        opened: list[Ours | Qemu] = []
        try:
            ours, idle = Ours(PAGES), Ours(1)
            opened += [ours, idle]
            qemu = Qemu(Path(directory))
            opened.append(qemu)
            yield ours, idle, qemu
        finally:
            for one in opened:
                one.close()


def measure(rounds: int) -> str:
    with contenders() as (ours, idle, qemu):
        runs = in_turn({"restore": ours.restore, "few": idle.again, "loadvm": qemu.loadvm, "anew": anew}, rounds, say)
        for _ in range(rounds):
            ours.by_parts()
        parts, size = ours.parts, ours.size
    parts["copy"] = [
        whole - log for whole, log in zip(parts["copy"], parts["dirty log, and protecting again"], strict=True)
    ]
    restore = median(runs["restore"])
    rows = [
        [f"**machine.restore(), {PAGES} pages dirty**", f"**{spread(runs['restore'], 2)}**"],
        ["machine.restore(), again at once", spread(runs["few"], 2)],
        ["a new machine instead, up to its start", spread(runs["anew"], 1)],
        [f"QEMU's loadvm, {PAGES} pages dirty", spread(runs["loadvm"], 1)],
    ]
    text = table(["", "ms (least–most)"], rows)
    text += f"\n\nGoal: at most {GOAL_MS:g} ms; {'met' if restore <= GOAL_MS else 'missed'}. "
    text += f"The snapshot took {size / MIB:.1f} MiB. Where the time goes, with a clock around each part:\n\n"
    return text + table(["", "ms"], [[name, f"{median(times):.3f}"] for name, times in parts.items()])
