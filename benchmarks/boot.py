"""From exec to a kernel's first userspace line, and the memory that the VMM itself then has: pyvmm beside QEMU."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.document import table
from benchmarks.programs import CACHE, PYVMM, BenchError, say
from benchmarks.stats import in_turn, paired_ratio, spread

KERNEL = CACHE / "guest" / "vmlinuz-cloud"
INITRAMFS = CACHE / "guest" / "initramfs.gz"
LINE: Final = b"pyvmm guest: userspace"
MEMORY_MB: Final = 256
TIMEOUT: Final = 120.0


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


def run_until(command: list[str], line: bytes) -> tuple[float, float, float]:
    """Seconds until *command* prints *line*, and the MB that it then has beside and in guest RAM; it is killed then."""
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
        seconds = time.monotonic() - start
        beside, within = resident(Path(f"/proc/{process.pid}/smaps").read_text(), MEMORY_MB << 10)
        if not within:
            raise BenchError(f"{Path(command[0]).name} has no mapping of {MEMORY_MB} MiB")
        return seconds, beside * 1024 / 1e6, within * 1024 / 1e6
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

    return {"pyvmm": ours, "QEMU microvm (rtc=on)": qemu("microvm,rtc=on"), "QEMU q35": qemu("q35")}


def measure(rounds: int) -> str:
    beside: dict[str, list[float]] = {name: [] for name in commands()}
    within: dict[str, list[float]] = {name: [] for name in commands()}

    def contender(name: str, command: list[str]) -> Callable[[], float]:
        def run() -> float:
            seconds, around, ram = run_until(command, LINE)
            beside[name].append(around)
            within[name].append(ram)
            return seconds

        return run

    programs = {name: contender(name, command) for name, command in commands().items()}
    for name, program in programs.items():
        say(f"{name}, not counted, for the page cache: {program():.2f}")
        beside[name].clear()
        within[name].clear()
    seconds = in_turn(programs, rounds, say)
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratio(seconds["pyvmm"], values)
        memory = [f"{median(beside[name]):.1f}", f"{median(within[name]):.0f}"]
        rows.append([name, spread(values, 2), f"{ratio:.2f}", *memory])
    head = ["", "exec to userspace, s (least–most)", "pyvmm's time, times this one's"]
    return table([*head, "resident beside guest RAM, MB", "resident guest RAM, MB"], rows)
