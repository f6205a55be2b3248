"""From a key on the host to the guest's `in al,0x60`: pyvmm beside QEMU.

The guest is guests/kbd-inb60, the same bytes for both: it sleeps in HLT; its handler of IRQ 1 reads port 0x60 and
writes the byte to port 0xE9. A process beside the monitor sends QMP's input-send-event, the same line for both, over a
Unix socket, and reads from a pipe what port 0xE9 got. Each press and each release is one event and one byte, sent some
milliseconds after the last was answered. What is timed:

    read    from just before the line is sent until the device has the value for the guest's IN. QEMU says when in its
            trace (pckbd_kbd_read_data, in µs), pyvmm by a clock that is read around its i8042
    byte    from just before the line is sent until the other process has the byte from port 0xE9; QEMU is not traced
    inside  from the key in the monitor's hands to that read, so without QMP, which QEMU reads byte by byte: in QEMU
            from its trace of input_event_key_qcode, in pyvmm from the call of the router; and from inject_key()
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.latency import Latency, elapsed, latency, microseconds, over_rounds
from benchmarks.pio import QEMU_DEBUG_EXIT_0, bios
from benchmarks.programs import PYTHON, ROOT, BenchError, output_of, say
from benchmarks.stats import in_turn, paired_ratio, verdict
from pyvmm import guests

EVENTS: Final = 600
WARM_UP: Final = 40
"""Events before those that count."""
GAP: Final = (0.002, 0.004)
"""Seconds between an answer and the next event, at random between the two."""
TIMEOUT: Final = 60.0
GOAL: Final = 1.0
KEY_TRACE: Final = ("input_event_key_qcode", "pckbd_kbd_read_data")
TRACE = re.compile(r"^\d+@(\d+)\.(\d{6}):(\w+)", re.MULTILINE)

MACHINE: Final[list[str | Path]] = [PYTHON, "-m", "benchmarks.keys_machine"]
OURS, QEMU, TRACED, INJECT = "pyvmm", "QEMU", "QEMU, traced", "pyvmm, inject_key()"

LAPIC_SETTINGS: Final = ((0xF0, 0x1FF), (0x350, 0x700), (0x360, 0x400))
"""Virtual wire mode: spurious vector, LINT0 for the PIC, LINT1 for the NMI (MultiProcessor Specification 3.6.2.2)."""


def gap() -> float:
    return random.uniform(*GAP)


def firmware(image: bytes) -> bytes:
    """pio.bios() with a local APIC that lets the PIC's interrupts through, as SeaBIOS leaves it and pyvmm too.

    Its registers are above what real mode reaches; DS keeps the limit of 4 GiB that it got in protected mode.
    """
    rom = bytearray(bios(image))
    gdt, start, then = 0xFE30, 0xFE50, 0xFF00
    descriptors = bytes(8) + bytes.fromhex("ffff 0000 0093 cf00")  # none; data, 0 to 4 GiB, accessed
    rom[gdt : gdt + 22] = descriptors + b"\x0f\0" + (0xFFFF0000 + gdt).to_bytes(4, "little")
    code = b"\xfa\x2e\x66\x0f\x01\x16" + (gdt + 16).to_bytes(2, "little")  # cli; lgdtl %cs:(gdt + 16)
    code += bytes.fromhex("0f20c0 0c01 0f22c0")  # CR0.PE = 1
    code += bytes.fromhex("bb0800 8edb")  # ds = 8
    code += bytes.fromhex("24fe 0f22c0")  # CR0.PE = 0
    for register, value in LAPIC_SETTINGS:  # movl $value, %ds:register
        code += b"\x67\x66\xc7\x05" + (0xFEE00000 + register).to_bytes(4, "little") + value.to_bytes(4, "little")
    code += b"\xe9" + (then - start - len(code) - 3).to_bytes(2, "little", signed=True)
    rom[start : start + len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + (start - 0xFFF3).to_bytes(2, "little", signed=True)
    return bytes(rom)


def event(down: bool) -> bytes:
    """The QMP command that presses or releases A."""
    key = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": "a"}}}
    command = {"execute": "input-send-event", "arguments": {"events": [key]}}
    return json.dumps(command, separators=(",", ":")).encode() + b"\n"


class Driver:
    """The other process: sends a command, and waits for the byte that the guest writes."""

    def __init__(self, qmp: socket.socket, output: int) -> None:
        self._qmp = qmp
        self._answers = qmp.makefile("rb")
        self._output = output
        self.sent: list[int] = []
        self.byte: list[int] = []

    def press(self, count: int) -> None:
        """Press and release in turn, *count* events in all, when monitor and guest are ready; CLOCK_MONOTONIC in ns."""
        self._answers.readline()  # the greeting
        self._qmp.sendall(b'{"execute":"qmp_capabilities"}\n')
        self._answer()
        self._byte()
        for number in range(count):
            time.sleep(gap())
            line = event(number % 2 == 0)
            sent = time.monotonic_ns()
            self._qmp.sendall(line)
            self._byte()
            self.byte.append(time.monotonic_ns())
            self.sent.append(sent)
            if number + 1 < count:  # with the last byte the guest ends
                self._answer()

    def _answer(self) -> None:
        line = b"-"
        while line and b'"return"' not in line:  # QEMU's own events come between
            line = self._answers.readline()
        if not line:
            raise BenchError("the monitor ended early")

    def _byte(self) -> None:
        if not select.select([self._output], [], [], TIMEOUT)[0] or not os.read(self._output, 1):
            raise BenchError("the guest did not take a key")


def drive(command: Sequence[str | Path], count: int, status: int) -> Driver:
    """Run *command*, `{fd}` in it being QMP's socket, with *count* events, until it ends with *status*."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT)
    words = [str(word).replace("{fd}", str(theirs.fileno())) for word in command]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, pass_fds=[theirs.fileno()], cwd=ROOT
    )
    theirs.close()
    assert process.stdout is not None
    with ours, process:
        driver = Driver(ours, process.stdout.fileno())
        try:
            driver.press(count)
            process.communicate(timeout=TIMEOUT)
        except (OSError, subprocess.TimeoutExpired, BenchError) as error:
            process.kill()
            _, errors = process.communicate()
            raise BenchError(f"{Path(words[0]).name}: {error}: {errors.decode(errors='replace').strip()}") from None
    if process.returncode != status:
        raise BenchError(f"{Path(words[0]).name} ended with status {process.returncode}, not {status}")
    return driver


def traced(log: str, count: int) -> tuple[list[int], list[int]]:
    """From QEMU's trace: when each key arrived and when it was read, in ns of the clock that shows the time of day.

    The guest's first reads, of what the firmware left, are not counted.
    """
    when: dict[str, list[int]] = {name: [] for name in KEY_TRACE}
    for second, microsecond, name in TRACE.findall(log):
        if name in when:
            when[name].append((int(second) * 1_000_000 + int(microsecond)) * 1000)
    arrived, read = (when[name][-count:] for name in KEY_TRACE)
    if len(arrived) != count or len(read) != count:
        raise BenchError(f"QEMU's trace has {len(arrived)} keys and {len(read)} reads of {count}")
    return arrived, read


class Keys:
    """The contenders' runs, and what they measured beside the value that they return: a list of rounds a name."""

    def __init__(self, events: int = EVENTS) -> None:
        self.count = events + WARM_UP
        self.seen: dict[str, list[Latency]] = {}

    def note(self, name: str, times: Sequence[float]) -> float:
        self.seen.setdefault(name, []).append(latency(times))
        return self.seen[name][-1].median

    def ours(self) -> float:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "steps"
            driver = drive([*MACHINE, file, str(self.count), "{fd}"], self.count, 0)
            steps: dict[str, list[int]] = json.loads(file.read_text())
        ways = {
            "loop": (driver.sent, steps["received"]),
            "parse": (steps["received"], steps["parsed"]),
            "devices": (steps["parsed"], steps["raised"]),
            "interrupt": (steps["raised"], steps["asked"]),
            "answer": (steps["asked"], steps["read"]),
            "console": (steps["read"], driver.byte),
            "inside": (steps["parsed"], steps["read"]),
            "byte": (driver.sent, driver.byte),
            "read": (driver.sent, steps["read"]),
        }
        for name, (starts, ends) in ways.items():
            value = self.note(f"{OURS} {name}", elapsed(starts, ends, WARM_UP))
        return value

    def inject(self) -> float:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "steps"
            output_of([*MACHINE, file, str(self.count)], 0)
            steps = json.loads(file.read_text())
        return self.note(INJECT, elapsed(steps["received"], steps["read"], WARM_UP))

    def qemu(self, trace: bool) -> float:
        guest = guests.load("kbd-inb60").with_parameters(count=self.count)
        with tempfile.TemporaryDirectory() as directory:
            rom, log = Path(directory) / "rom", Path(directory) / "log"
            rom.write_bytes(firmware(guest.image))
            command: list[str | Path] = ["qemu-system-x86_64", "-accel", "kvm", "-m", "16", "-nodefaults"]
            command += ["-display", "none"]
            command += ["-no-reboot", "-bios", str(rom), "-debugcon", "stdio"]
            command += ["-chardev", "socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
            command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
            if trace:
                command += ["-msg", "timestamp=on", "-D", str(log)]
                for name in KEY_TRACE:
                    command += ["-trace", name]
            driver = drive(command, self.count, QEMU_DEBUG_EXIT_0)
            if not trace:
                return self.note(f"{QEMU} byte", elapsed(driver.sent, driver.byte, WARM_UP))
            offset = time.time_ns() - time.monotonic_ns()
            arrived, read = traced(log.read_text(), self.count)
        self.note(f"{QEMU} inside", elapsed(arrived, read, WARM_UP))
        return self.note(f"{QEMU} read", elapsed([sent + offset for sent in driver.sent], read, WARM_UP))

    def contenders(self) -> dict[str, Callable[[], float]]:
        return {
            OURS: self.ours,
            QEMU: lambda: self.qemu(trace=False),
            TRACED: lambda: self.qemu(trace=True),
            INJECT: self.inject,
        }


WAYS: Final = {
    "command sent to the guest's read of port 0x60": "read",
    "command sent to the byte from port 0xE9 outside": "byte",
    "key in the monitor's hands to the guest's read": "inside",
}
STEPS: Final = {
    "the line, to the loop's callback with the machine lock": "loop",
    "the line read and parsed": "parse",
    "router, PS/2 keyboard, i8042, to KVM_IRQ_LINE": "devices",
    "KVM_IRQ_LINE, the vCPU wakes, the guest's handler, its exit, GIL and lock": "interrupt",
    "the i8042 answers and lowers the line": "answer",
    "the guest's write to port 0xE9, its exit, the pipe, the other process": "console",
}


def report(seen: dict[str, list[Latency]]) -> str:
    rows = []
    for text, way in WAYS.items():
        ours, qemu = seen[f"{OURS} {way}"], seen[f"{QEMU} {way}"]
        ratio = paired_ratio([one.median for one in ours], [one.median for one in qemu])
        note = f"{ratio:.2f} ({verdict(ratio, GOAL)})" if way == "read" else f"{ratio:.2f}"
        rows.append([text, microseconds(over_rounds(ours)), microseconds(over_rounds(qemu)), note])
    rows.append(["a script's inject_key() to the guest's read", microseconds(over_rounds(seen[INJECT])), "", ""])
    text = table(["µs: median, 99th percentile", "pyvmm", "QEMU", "pyvmm's median, times QEMU's"], rows)
    text += "\n\nWhere pyvmm's time goes:\n\n"
    steps = [[what, microseconds(over_rounds(seen[f"{OURS} {step}"]))] for what, step in STEPS.items()]
    return text + table(["", "µs: median, 99th percentile"], steps)


def measure(rounds: int) -> str:
    keys = Keys()
    in_turn(keys.contenders(), rounds, say)
    return report(keys.seen) + f"\n\n{EVENTS} events a round, each {GAP[0] * 1e3:g}–{GAP[1] * 1e3:g} ms after the last."
