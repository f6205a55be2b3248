"""Port writes and reads a second: pyvmm's exit loop with a device in Python, a loop in C without any, and QEMU.

The guest is guests/pio-bench, the same bytes for all; it times its own two loops with the TSC, so that starting does
not count. Its port is the scratch register of the serial port, which pyvmm and QEMU have alike and which only stores.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import pio_layers
from benchmarks.document import table
from benchmarks.programs import PYVMM, BenchError, compiled, output_of, say
from benchmarks.stats import Runs, in_turn, paired_ratio, spread, verdict
from kvm_cffi import System
from pyvmm import guests

C_LOOP, OURS, QEMU = "C loop, no handler", "pyvmm, device in Python", "qemu-system-x86_64 -accel kvm"
COALESCED = "pyvmm, port 0x80, coalesced"
UART_SCR = 0x3FF
POST = 0x80
CYCLES = re.compile(r"^([0-9a-f]{16}) ([0-9a-f]{16})\r?$", re.MULTILINE)
DEBUG_EXIT_0 = 16
QEMU_DEBUG_EXIT_0 = 1
"""isa-debug-exit ends QEMU with 2 * value + 1."""


@dataclass(frozen=True)
class Load:
    """How many writes and reads a run makes."""

    outs: int
    ins: int


def cycles(output: str) -> tuple[int, int]:
    """The two numbers that pio-bench prints: cycles of its writes and of its reads; BenchError without them."""
    found = CYCLES.search(output)
    if not found:
        raise BenchError(f"pio-bench printed no result: {output!r}")
    return int(found[1], 16), int(found[2], 16)


def bios(image: bytes) -> bytes:
    """A 64 KiB firmware for QEMU that copies *image* to 0:7C00 and jumps there, as SeaBIOS does much later.

    At reset CS is 0xFFFF0000 and IP 0xFFF0, so offsets are those in the file (Intel SDM volume 3, 10.1.4).
    """
    copy = bytes.fromhex("fa fc 31c0 8ec0 8ed0 bc0070 31f6 bf007c")  # cli; cld; es = ss = 0; sp = 0x7000; si = 0; di
    copy += b"\xb9" + len(image).to_bytes(2, "little")  # mov $len, %cx
    copy += bytes.fromhex("f32ea4 8ed8 ea007c0000")  # rep movsb from cs; ds = 0; ljmp $0, $0x7c00
    rom = bytearray(b"\xf4" * 0x10000)
    rom[: len(image)] = image
    rom[0xFF00 : 0xFF00 + len(copy)] = copy
    rom[0xFFF0:0xFFF3] = bytes.fromhex("e90dff")  # jmp 0xff00
    return bytes(rom)


@contextmanager
def contenders(load: Load, seen: dict[str, list[tuple[int, int]]]) -> Iterator[dict[str, Callable[[], float]]]:
    """What can be run, by name; each returns the cycles of a port write and leaves both numbers in *seen*."""
    guest = guests.load("pio-bench").with_parameters(outs=load.outs, ins=load.ins, port=UART_SCR)
    with tempfile.TemporaryDirectory() as directory:
        image, firmware = Path(directory) / "image", Path(directory) / "bios"
        image.write_bytes(guest.image)
        firmware.write_bytes(bios(guest.image))
        results = [hex(guest.symbols[name]) for name in ("out_cycles", "in_cycles")]

        def result(name: str, out: int, read: int) -> float:
            seen[name].append((out // load.outs, read // load.ins))
            return out / load.outs

        def c_loop() -> float:
            out, read, _ = output_of([compiled("pio_loop"), image, *results], 0).split()
            return result(C_LOOP, int(out), int(read))

        def ours(name: str, port: int) -> float:
            command: list[str | Path] = [PYVMM, "run", "pio-bench"]
            for setting in (f"outs={load.outs}", f"ins={load.ins}", f"port={port}"):
                command += ["--set", setting]
            return result(name, *cycles(output_of(command, DEBUG_EXIT_0)))

        def qemu() -> float:
            command: list[str | Path] = [
                "qemu-system-x86_64",
                "-accel",
                "kvm",
                "-m",
                "16",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ]
            command += ["-bios", str(firmware), "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
            return result(QEMU, *cycles(output_of(command, QEMU_DEBUG_EXIT_0)))

        yield {
            C_LOOP: c_loop,
            OURS: lambda: ours(OURS, UART_SCR),
            QEMU: qemu,
            COALESCED: lambda: ours(COALESCED, POST),
        }


def tsc_hz() -> int:
    """The frequency of a guest's TSC."""
    with System() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.get_tsc_khz() * 1000


def report(writes: Runs, reads: Runs, hz: int, goal: float) -> str:
    """The table of the contenders from their cycles an access."""
    rows = []
    for name, values in writes.items():
        us = [value / hz * 1e6 for value in values]
        read = median(reads[name]) / hz * 1e6
        ratio = paired_ratio(values, writes[C_LOOP])
        note = f"{ratio:.2f} ({verdict(ratio, goal)})" if name == OURS else f"{ratio:.2f}"
        rows.append([name, f"{1e6 / median(us):,.0f}", spread(us, 2), note, f"{read:.2f}"])
    head = ["", "port writes a second", "µs a write (least–most)", "times the C loop's", "µs a read"]
    return table(head, rows)


def measure(rounds: int, load: Load, goal: float) -> str:
    hz = tsc_hz()
    seen: dict[str, list[tuple[int, int]]] = {name: [] for name in (C_LOOP, OURS, QEMU, COALESCED)}
    with contenders(load, seen) as programs:
        writes = in_turn(programs, rounds, say)
    reads: Runs = {name: [float(read) for _, read in pairs] for name, pairs in seen.items()}
    text = report(writes, reads, hz, goal)
    layers = in_turn(pio_layers.loops(load.outs, UART_SCR), rounds, say)
    layers = {C_LOOP: writes[C_LOOP], **layers, "the threads and the rest of the loop": writes[OURS]}
    return (
        text + "\n\nWhere the time of a write goes, each line with all of the lines above it:\n\n" + added(layers, hz)
    )


def added(layers: Runs, hz: int) -> str:
    """The table of loops that do more and more, and what each adds to the one before."""
    rows, before = [], 0.0
    for name, values in layers.items():
        us = median(values) / hz * 1e6
        rows.append([name, f"{us:.2f}", f"{us - before:+.2f}" if before else ""])
        before = us
    return table(["", "µs a write", "adds"], rows)
