"""From a key on the host to a process in the guest, through virtio-input: pyvmm beside QEMU's virtio-keyboard-pci.

Both boot Debian's cloud kernel, whose virtio_input and evdev drive the keyboard with MSI-X; both capture a keyboard of
the host, which uinput makes, as `pyvmm run --keyboard evdev=PATH` and QEMU's input-linux do. A process beside them
writes a press or a release to uinput. In the guest benchmarks/answer_keys.c reads the event from /dev/input/event* and
writes a byte to port 0xE9, which comes out of a pipe. A time is from just before the write to uinput until that byte is
there.

    latency     each event some milliseconds after the last was answered
    throughput  so many events on their way that neither side waits: a new one for each that is answered
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.latency import Latency, elapsed, latency, microseconds, over_rounds
from benchmarks.programs import CACHE, PYTHON, ROOT, BenchError, compiled, say
from benchmarks.stats import in_turn, paired_ratio, spread
from pyvmm.input.codes import EV_KEY, EV_SYN, KEY_A, SYN_REPORT

KERNEL = CACHE / "guest" / "vmlinuz-cloud"
INITRAMFS = CACHE / "guest" / "initramfs-cloud.gz"
CMDLINE: Final = "quiet panic=-1 pyvmm.run=/bin/answer-keys"
MEMORY_MB: Final = 256
EVENTS: Final = 300
WARM_UP: Final = 20
"""Events before those that count."""
GAP: Final = 0.01
"""Seconds between an answer and the next event."""
BURST: Final = 600
ON_THEIR_WAY: Final = 8
"""Events not answered yet while throughput is measured; evdev and the eventq hold more."""
BOOT: Final = 90.0
TIMEOUT: Final = 20.0
INPUT_EVENT: Final = struct.Struct("llHHi")
OURS, QEMU = "pyvmm", "QEMU"
PRESSED, RELEASED = b"d", b"u"


def key(down: bool) -> bytes:
    """What uinput takes for A pressed or released: two struct input_event, the second a SYN_REPORT."""
    return INPUT_EVENT.pack(0, 0, EV_KEY, KEY_A, int(down)) + INPUT_EVENT.pack(0, 0, EV_SYN, SYN_REPORT, 0)


def with_file(initramfs: bytes, program: bytes, path: str) -> bytes:
    """An initial ramdisk with one more executable, in a cpio archive behind the first.

    Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    archive = b""
    for name, mode, data in ((path, 0o100755, program), ("TRAILER!!!", 0, b"")):
        encoded = name.encode() + b"\0"
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return initramfs + bytes(-len(initramfs) % 4) + archive


class Answers:
    """The bytes from port 0xE9."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: deque[bytes] = deque()

    def next(self, timeout: float = TIMEOUT) -> bytes:
        """The next byte; BenchError where it does not come."""
        if not self._waiting:
            ready = select.select([self._fd], [], [], timeout)[0]
            data = os.read(self._fd, 4096) if ready else b""
            if not data:
                raise BenchError("the guest did not answer" if not ready else "the monitor ended early")
            self._waiting.extend(bytes((byte,)) for byte in data)
        return self._waiting.popleft()

    def expect(self, wanted: bytes, timeout: float = TIMEOUT) -> None:
        if (byte := self.next(timeout)) != wanted:
            raise BenchError(f"the guest answered {byte!r}, not {wanted!r}")


class UinputKeyboard:
    """The host's keyboard: a descriptor of uinput, or of a test."""

    def __init__(self, fd: int, answers: Answers) -> None:
        self._fd = fd
        self._answers = answers
        self.written: list[int] = []
        self.answered: list[int] = []

    def one_by_one(self, count: int) -> None:
        """Press and release, *count* events in all, each after the answer to the last; the times in ns."""
        for number in range(count):
            time.sleep(GAP)
            down = number % 2 == 0
            self.written.append(time.monotonic_ns())
            os.write(self._fd, key(down))
            self._answers.expect(PRESSED if down else RELEASED)
            self.answered.append(time.monotonic_ns())

    def burst(self, count: int) -> float:
        """Events a second, *count* of them, ON_THEIR_WAY at a time."""
        start = time.monotonic()
        for number in range(count + ON_THEIR_WAY):
            if number < count:
                os.write(self._fd, key(number % 2 == 0))
            if number >= ON_THEIR_WAY:
                self._answers.expect(PRESSED if (number - ON_THEIR_WAY) % 2 == 0 else RELEASED)
        return count / (time.monotonic() - start)


@contextmanager
def uinput() -> Iterator[tuple[int, Path]]:
    """A keyboard of the host, and its device node."""
    for module in ("evdev", "uinput"):
        subprocess.run(["modprobe", module], check=True)
    from evdev import UInput

    with UInput({EV_KEY: list(range(1, 120))}, name="scripts/bench keyboard") as device:
        deadline = time.monotonic() + TIMEOUT
        while device.device is None:  # without udev the node comes some time after the device
            if time.monotonic() > deadline:
                raise BenchError("uinput made no device")
            time.sleep(0.05)
            device.device = device._find_device(device.fd)
        yield device.fd, Path(str(device.device.path))


def qemu_command(initrd: Path, keyboard: Path) -> list[str | Path]:
    command: list[str | Path] = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35"]
    command += ["-m", str(MEMORY_MB), "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-kernel", KERNEL, "-initrd", initrd, "-append", CMDLINE]
    # With vapic QEMU sets the guest's registers once, and then the lab refuses it the ports that ioperm() opened.
    command += ["-global", "kvm-apic.vapic=off"]
    command += ["-device", "virtio-keyboard-pci", "-object", f"input-linux,id=keyboard,evdev={keyboard}"]
    return [*command, "-debugcon", "stdio"]


class Virtio:
    """The contenders' runs, and what they measured beside the value that they return: a list of rounds a name."""

    def __init__(self, fd: int, node: Path, initrd: Path, events: int = EVENTS, burst: int = BURST) -> None:
        self._fd, self._node, self._initrd = fd, node, initrd
        self._events, self._burst = events + WARM_UP, burst
        self.seen: dict[str, list[Latency]] = {}
        self.rates: dict[str, list[float]] = {OURS: [], QEMU: []}

    def run(self, name: str, command: Sequence[str | Path]) -> UinputKeyboard:
        """Boot, press keys, end: a keyboard with its times."""
        words = [str(word) for word in command]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            answers = Answers(process.stdout.fileno())
            keyboard = UinputKeyboard(self._fd, answers)
            try:
                answers.expect(b"K", BOOT)
                keyboard.one_by_one(self._events)
                self.rates[name].append(keyboard.burst(self._burst))
                process.stdin.close()  # which ends ours
                if name == OURS and process.wait(TIMEOUT) != 0:
                    raise BenchError(f"status {process.returncode}")
            except (BenchError, OSError, subprocess.TimeoutExpired) as error:
                process.kill()
                message = process.stderr.read().decode(errors="replace").strip()
                raise BenchError(f"{name}: {error}: {message[-1000:]}") from None
            finally:
                process.kill()
        return keyboard

    def note(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> float:
        self.seen.setdefault(name, []).append(latency(elapsed(starts, ends, WARM_UP)))
        return self.seen[name][-1].median

    def ours(self) -> float:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "steps"
            words: list[str | Path] = [PYTHON, "-m", "benchmarks.virtio_machine", file]
            keyboard = self.run(OURS, [*words, KERNEL, self._initrd, CMDLINE, self._node])
            steps: dict[str, list[int]] = json.loads(file.read_text())
        count = self._events
        captured, sent = steps["captured"][:count], steps["sent"][:count]
        answered = steps["answered"][1 : count + 1]  # behind the one that says that the guest is ready
        self.note(f"{OURS} capture", keyboard.written, captured)
        self.note(f"{OURS} device", captured, sent)
        self.note(f"{OURS} guest", sent, answered)
        self.note(f"{OURS} pipe", answered, keyboard.answered)
        return self.note(OURS, keyboard.written, keyboard.answered)

    def qemu(self) -> float:
        keyboard = self.run(QEMU, qemu_command(self._initrd, self._node))
        return self.note(QEMU, keyboard.written, keyboard.answered)

    def contenders(self) -> dict[str, Callable[[], float]]:
        return {OURS: self.ours, QEMU: self.qemu}


STEPS: Final = {
    "uinput and evdev of the host, the loop, the router": "capture",
    "the virtqueue, `EventfdMsi.pulse()`": "device",
    "the guest: interrupt, virtio_input, evdev, the process, its exit": "guest",
    "the pipe, the other process": "pipe",
}


def report(seen: dict[str, list[Latency]], rates: dict[str, list[float]]) -> str:
    rows = []
    for name in (OURS, QEMU):
        ratio = paired_ratio([one.median for one in seen[OURS]], [one.median for one in seen[name]])
        rate = paired_ratio(rates[OURS], rates[name])
        rows.append(
            [name, microseconds(over_rounds(seen[name])), f"{ratio:.2f}", spread(rates[name], 0), f"{rate:.2f}"]
        )
    head = ["", "µs: median, 99th percentile", "pyvmm's median, times this one's"]
    text = table([*head, "events a second (least–most)", "pyvmm's rate, times this one's"], rows)
    steps = [[what, microseconds(over_rounds(seen[f"{OURS} {step}"]))] for what, step in STEPS.items()]
    return text + "\n\nWhere pyvmm's time goes:\n\n" + table(["", "µs: median, 99th percentile"], steps)


def prepare() -> None:
    """Compile outside the lab what the lab would take long to compile."""
    compiled("answer_keys", "-static")


def measure(rounds: int) -> str:
    with tempfile.TemporaryDirectory() as directory, uinput() as (fd, node):
        initrd = Path(directory) / "initrd"
        program = compiled("answer_keys", "-static").read_bytes()
        initrd.write_bytes(with_file(INITRAMFS.read_bytes(), program, "bin/answer-keys"))
        virtio = Virtio(fd, node, initrd)
        in_turn(virtio.contenders(), rounds, say)
    text = report(virtio.seen, virtio.rates)
    return (
        text
        + f"\n\n{EVENTS} events a round for the latency, {BURST} for the rate, {ON_THEIR_WAY} of these on their way."
    )
