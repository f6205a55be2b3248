"""Seeing a Linux panic on the serial console: the kernel has no other way to tell a board without firmware.

Source: Linux kernel/panic.c, panic(): "Kernel panic - not syncing: " and the reason, since 2.4 in these words;
as its last words "---[ end Kernel panic - not syncing: " and the reason again, " ]---" behind it since 4.20. The first
line may be cut in two by what a process prints at the same time, the last is written when all else has ended.

Words on a console are no proof: a shell that prints an old log shows the same. A kernel that has panicked and does not
reset spins on in the kernel, so looks at the vCPUs decide.
"""

from __future__ import annotations

import re
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.machine.event import MachineEvent
from pyvmm.machine.outcome import End, Outcome

if TYPE_CHECKING:
    from pyvmm.machine.life import Life
    from pyvmm.vcpu.sample import Sample
    from pyvmm.vcpu.thread import VcpuThread

LOOK_NS = 250_000_000
LOOKS = 6
"""So many looks, so far apart, must find a vCPU running in the kernel."""
TELLING = 60
"""So many more looks it gets at the most while it still tells of its panic on the console: a busy host is slow."""
LINE_LIMIT = 512
LINES_KEPT = 100
"""Of the console, for what the kernel says of its panic."""
_CONTROL_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\^-~])")
"""ECMA-48: CSI with its parameters (5.4), or ESC and a final byte (5.3); a colour, a cleared line, a request."""
_PANIC = re.compile(
    rb"^(?:<\d>)?(?:\[ *\d+\.\d+\](?:\[[^\]]*\])? )?(---\[ end )?(Kernel panic - not syncing.*?)(?(1)(?: \]---)?$|$)"
)


_BEGINS = re.compile(
    rb"^(?:<\d>)?(?:\[ *\d+\.\d+\](?:\[[^\]]*\])? )?"
    rb"(?:BUG: |Oops|general protection fault|kernel BUG at |Unable to handle |int3: |stack segment: |divide error: |"
    rb"invalid opcode: |double fault: |watchdog: BUG|sysrq: |Kernel panic - |-+\[ cut here)"
)
"""What the kernel's text of a panic begins with: its own line, or that of the oops before it."""


class PanicWatch:
    """feed() it the console's output; message is the kernel's own line once there was one."""

    def __init__(self) -> None:
        self._line = bytearray()
        self.message = ""
        self._lines: deque[bytes] = deque(maxlen=LINES_KEPT)

    def text(self) -> list[str]:
        """What the kernel has said of its panic, line by line; empty where it has not."""
        lines = list(self._lines)
        begin = next((i for i, line in enumerate(lines) if _BEGINS.match(line)), len(lines))
        return [line.decode("ascii", "backslashreplace") for line in lines[begin:]] if self.message else []

    def feed(self, data: bytes) -> None:
        for byte in data:
            if byte not in b"\r\n":
                if len(self._line) < LINE_LIMIT:
                    self._line.append(byte)
                continue
            if self._line:
                line = _CONTROL_SEQUENCE.sub(b"", self._line)
                self._lines.append(bytes(line))
                match = _PANIC.match(line)
                if match:
                    self.message = match[2].decode("ascii", "replace")
                self._line.clear()


class DeathWatch:
    """Believes what a PanicWatch has seen if some vCPU then spins on in the kernel, and ends the machine."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._watch = PanicWatch()
        self._start = 0
        """Which start of the machine it is: what was asked before a reset says nothing after it."""
        self._told = False
        """There was output since the last look."""
        self._telling = TELLING
        self.samples: dict[int, list[Sample]] = {}
        """Where vCPUs were that spun in the kernel, by their numbers."""

    @property
    def message(self) -> str:
        """The kernel's own line, while it is believed; else empty."""
        return self._watch.message

    def text(self) -> list[str]:
        """All that the kernel has said of it."""
        return self._watch.text()

    def feed(self, data: bytes) -> None:
        """The guest's console output, under the machine lock."""
        seen = self._watch.message
        self._watch.feed(data)
        self._told = True
        if self._watch.message and not seen:
            self._look_later(LOOKS)

    def restarted(self) -> None:
        """The machine has been reset."""
        self._start += 1
        self._watch = PanicWatch()
        self._telling = TELLING
        self.samples.clear()

    def _look_later(self, looks: int) -> None:
        loop = self._life.loop
        loop.timer(partial(self._look, self._start, looks)).arm(loop.now() + LOOK_NS)

    def _look(self, start: int, looks: int) -> None:
        if start != self._start:
            return
        if self._life.reasons:  # nobody spins while the machine stands still
            self._look_later(looks)
            return
        from pyvmm.vcpu.sample import take_sample  # once there was a panic

        spinning: list[bool] = []

        def look(thread: VcpuThread) -> None:
            if not thread.is_halted() and thread.vcpu.get_sregs().ss.dpl == 0:
                spinning.append(True)
                self.samples.setdefault(thread.vcpu.id, []).append(take_sample(thread.vcpu))

        for thread in self._life.cpus.seated:
            thread.call(partial(look, thread))
        loop = self._life.loop
        loop.timer(partial(self._judge, start, looks, spinning)).arm(loop.now() + LOOK_NS)

    def _judge(self, start: int, looks: int, spinning: list[bool]) -> None:
        if start != self._start:
            return
        told, self._told = self._told, False
        if not spinning:
            self._watch.message = ""
        elif told and self._telling:
            self._telling -= 1
            self._look_later(looks)
        elif looks > 1:
            self._look_later(looks - 1)
        else:
            self._life.events(MachineEvent("panicked", self._watch.message))
            self._life.end(Outcome(End.PANIC, message=self._watch.message))
