"""From exec to a kernel's first userspace line, and the memory that the VMM itself then has: pyvmm beside QEMU."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks import tracefs
from benchmarks.document import table
from benchmarks.programs import CACHE, PYVMM, BenchError, say
from benchmarks.stats import in_turn, paired_ratio, spread, verdict

KERNEL = CACHE / "guest" / "vmlinuz-cloud"
INITRAMFS = CACHE / "guest" / "initramfs.gz"
LINE: Final = b"pyvmm guest: userspace"
MEMORY_MB: Final = 256
TIMEOUT: Final = 120.0
Q35: Final = "QEMU q35"
MICROVM: Final = "QEMU microvm (rtc=on)"
EXEC_GOAL: Final = 0.93
"""Of q35's time from exec."""
RUN_GOAL: Final = 1.0
"""Of microvm's time from the first KVM_RUN."""
ONCE: Final = "traceoff:1"
"""The trigger of kvm_entry that lets the first one be recorded and spares the others: a trigger that disables the event
would act before it is recorded."""


def resident(smaps: str, ram: int) -> tuple[int, int]:
    """KiB of resident memory beside and in the mappings of exactly *ram* KiB (/proc/PID/smaps, proc(5))."""
    beside = within = size = 0
    for line in smaps.splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0])
        elif name == "Rss":
            if size == ram:
                within += int(value.split()[0])
            else:
                beside += int(value.split()[0])
    return beside, within


class Start(NamedTuple):
    """One start of a VMM: when it was executed and when its guest printed the line, in seconds of time.monotonic(), and
    the MB that it then had beside and in guest RAM."""

    executed: float
    printed: float
    beside: float
    within: float

    @property
    def seconds(self) -> float:
        return self.printed - self.executed


def run_until(command: list[str], line: bytes) -> Start:
    """Run *command* until it prints *line*; it is killed then."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    output = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while line not in output:
                data = b""
                if selector.select(start + TIMEOUT - time.monotonic()):
                    data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    process.kill()
                    tail = (output[-1000:] + process.stderr.read()[-1000:]).decode(errors="replace")
                    raise BenchError(f"{Path(command[0]).name} did not print {line.decode()!r}: {tail}")
                output += data
        end = time.monotonic()
        beside, within = resident(Path(f"/proc/{process.pid}/smaps").read_text(), MEMORY_MB << 10)
        if not within:
            raise BenchError(f"{Path(command[0]).name} has no mapping of {MEMORY_MB} MiB")
        return Start(start, end, beside * 1024 / 1e6, within * 1024 / 1e6)
    finally:
        process.kill()
        process.communicate()


def commands() -> dict[str, list[str]]:
    """The contenders' command lines, each with the RAM that it has by default: anonymous memory."""
    boot = "console=ttyS0 quiet panic=-1 pyvmm.modules=none"
    files = [str(KERNEL), str(INITRAMFS)]
    ours = [str(PYVMM), "run", "-k", files[0], "-i", files[1], "-p", boot, "-m", f"{MEMORY_MB}M", "-c", "1"]

    def qemu(machine: str) -> list[str]:
        words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(MEMORY_MB)]
        words += ["-machine", machine, "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
        words += ["-kernel", files[0], "-initrd", files[1], "-append", boot]
        return words

    return {"pyvmm": ours, MICROVM: qemu("microvm,rtc=on"), Q35: qemu("q35")}


def measure(rounds: int) -> str:
    starts: dict[str, list[Start]] = {name: [] for name in commands()}
    entered: dict[str, list[float]] = {name: [] for name in commands()}

    def contender(name: str, command: list[str]) -> Callable[[], float]:
        def run() -> float:
            with tracefs.recorded({"kvm_entry": ONCE}):
                start = run_until(command, LINE)
            entry = tracefs.first_entry(tracefs.trace())
            if entry is None:
                raise BenchError("the kernel traced no KVM_RUN")
            starts[name].append(start)
            entered[name].append(start.printed - entry)
            return start.seconds

        return run

    programs = {name: contender(name, command) for name, command in commands().items()}
    for name, program in programs.items():
        say(f"{name}, not counted, for the page cache: {program():.2f}")
        starts[name].clear()
        entered[name].clear()
    seconds = in_turn(programs, rounds, say)
    rows = []
    for name, values in seconds.items():
        times = [spread(values, 2), f"{paired_ratio(seconds['pyvmm'], values):.2f}"]
        times += [spread(entered[name], 2), f"{paired_ratio(entered['pyvmm'], entered[name]):.2f}"]
        memory = [f"{median(s.beside for s in starts[name]):.1f}", f"{median(s.within for s in starts[name]):.0f}"]
        rows.append([name, *times, *memory])
    head = ["", "exec to userspace, s (least–most)", "pyvmm's time, times this one's"]
    head += ["first KVM_RUN to userspace, s", "pyvmm's time, times this one's"]
    text = table([*head, "resident beside guest RAM, MB", "resident guest RAM, MB"], rows)
    exec_ratio = paired_ratio(seconds["pyvmm"], seconds[Q35])
    run_ratio = paired_ratio(entered["pyvmm"], entered[MICROVM])
    text += f"\n\nFrom exec, {Q35}: {verdict(exec_ratio, EXEC_GOAL)}. "
    return text + f"From the first KVM_RUN, {MICROVM}: {verdict(run_ratio, RUN_GOAL)}."
