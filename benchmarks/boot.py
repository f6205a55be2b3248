"""From exec to a kernel's first userspace line, and the memory that the VMM itself then has: pyvmm beside QEMU."""

from __future__ import annotations

import os
import re
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
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")


def resident(smaps: str, ram: str) -> tuple[int, int]:
    """KiB of resident memory beside and in the mappings whose name has *ram* in it (/proc/PID/smaps, proc(5))."""
    beside = within = 0
    name = ""
    for line in smaps.splitlines():
        if found := MAPPING.match(line):
            name = found[1]
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            if ram in name:
                within += size
            else:
                beside += size
    return beside, within


def run_until(command: list[str], line: bytes, ram: str) -> tuple[float, float]:
    """Seconds until *command* prints *line*, and the MB that it then has beside guest RAM; it is killed then."""
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
        beside, within = resident(Path(f"/proc/{process.pid}/smaps").read_text(), ram)
        if not within:
            raise BenchError(f"{Path(command[0]).name} has no mapping called {ram}")
        return seconds, beside * 1024 / 1e6
    finally:
        process.kill()
        process.communicate()


def commands() -> dict[str, tuple[list[str], str]]:
    """The contenders: their command lines, and what their guest RAM is called in smaps."""
    boot = "console=ttyS0 quiet panic=-1 pyvmm.modules=none"
    files = [str(KERNEL), str(INITRAMFS)]
    ours = [str(PYVMM), "run", "-k", files[0], "-i", files[1], "-p", boot, "-m", f"{MEMORY_MB}M", "-c", "1"]

    def qemu(machine: str) -> list[str]:
        # A memfd has a name in smaps; what it holds and when is as with anonymous memory.
        ram = f"memory-backend-memfd,id=ram,size={MEMORY_MB}M"
        words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", str(MEMORY_MB)]
        words += ["-object", ram, "-machine", f"{machine},memory-backend=ram", "-nodefaults", "-display", "none"]
        words += ["-no-reboot", "-serial", "stdio", "-kernel", files[0], "-initrd", files[1], "-append", boot]
        return words

    return {
        "pyvmm": (ours, "memfd:pyvmm-ram"),
        "QEMU microvm (rtc=on)": (qemu("microvm,rtc=on"), "memfd:memory-backend-memfd"),
        "QEMU q35": (qemu("q35"), "memfd:memory-backend-memfd"),
    }


def measure(rounds: int) -> str:
    memory: dict[str, list[float]] = {name: [] for name in commands()}

    def contender(name: str, command: list[str], ram: str) -> Callable[[], float]:
        def run() -> float:
            seconds, megabytes = run_until(command, LINE, ram)
            memory[name].append(megabytes)
            return seconds

        return run

    programs = {name: contender(name, *what) for name, what in commands().items()}
    for name, program in programs.items():
        say(f"{name}, not counted, for the page cache: {program():.2f}")
        memory[name].clear()
    seconds = in_turn(programs, rounds, say)
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratio(seconds["pyvmm"], values)
        rows.append([name, spread(values, 2), f"{ratio:.2f}", f"{median(memory[name]):.1f}"])
    head = ["", "exec to userspace, s (least–most)", "pyvmm's time, times this one's", "resident beside guest RAM, MB"]
    return table(head, rows)
