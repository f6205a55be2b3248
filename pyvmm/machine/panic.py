"""Seeing a Linux panic on the serial console: the kernel has no other way to tell a board without firmware.

Source: Linux kernel/panic.c, panic(): "Kernel panic - not syncing: " and the reason, since 2.4 in these words;
as its last words "---[ end Kernel panic - not syncing: " and the reason again, " ]---" behind it since 4.20. The first
line may be cut in two by what a process prints at the same time, the last is written when all else has ended.

Words on a console are no proof: a shell that prints an old log shows the same. A kernel that has panicked and does not
reset spins on in the kernel, so looks at the vCPUs decide.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from pyvmm.machine.event import MachineEvent
from pyvmm.machine.outcome import End, Outcome

if TYPE_CHECKING:
    from pyvmm.machine.life import Life
    from pyvmm.vcpu.thread import VcpuThread

LOOK_NS = 250_000_000
LOOKS = 6
"""So many looks, so far apart, must find a vCPU running in the kernel."""
LINE_LIMIT = 512
_CONTROL_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\^-~])")
"""ECMA-48: CSI with its parameters (5.4), or ESC and a final byte (5.3); a colour, a cleared line, a request."""
_PANIC = re.compile(
    rb"^(?:<\d>)?(?:\[ *\d+\.\d+\](?:\[[^\]]*\])? )?(---\[ end )?(Kernel panic - not syncing.*?)(?(1)(?: \]---)?$|$)"
)


class PanicWatch:
    """feed() it the console's output; message is the kernel's own line once there was one."""

    def __init__(self) -> None:
        self._line = bytearray()
        self.message = ""

    def feed(self, data: bytes) -> None:
        for byte in data:
            if byte not in b"\r\n":
                if len(self._line) < LINE_LIMIT:
                    self._line.append(byte)
                continue
            if self._line:
                match = _PANIC.match(_CONTROL_SEQUENCE.sub(b"", self._line))
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

    @property
    def message(self) -> str:
        """The kernel's own line, while it is believed; else empty."""
        return self._watch.message

    def feed(self, data: bytes) -> None:
        """The guest's console output, under the machine lock."""
        seen = self._watch.message
        self._watch.feed(data)
        if self._watch.message and not seen:
            self._look_later(LOOKS)

    def restarted(self) -> None:
        """The machine has been reset."""
        self._start += 1
        self._watch = PanicWatch()

    def _look_later(self, looks: int) -> None:
        loop = self._life.loop
        loop.timer(partial(self._look, self._start, looks)).arm(loop.now() + LOOK_NS)

    def _look(self, start: int, looks: int) -> None:
        if start != self._start:
            return
        if self._life.reasons:  # nobody spins while the machine stands still
            self._look_later(looks)
            return
        spinning: list[bool] = []

        def look(thread: VcpuThread) -> None:
            if not thread.is_halted() and thread.vcpu.get_sregs().ss.dpl == 0:
                spinning.append(True)

        for thread in self._life.cpus.threads:
            thread.call(partial(look, thread))
        loop = self._life.loop
        loop.timer(partial(self._judge, start, looks, spinning)).arm(loop.now() + LOOK_NS)

    def _judge(self, start: int, looks: int, spinning: list[bool]) -> None:
        if start != self._start:
            return
        if not spinning:
            self._watch.message = ""
        elif looks > 1:
            self._look_later(looks - 1)
        else:
            self._life.events(MachineEvent("panicked", self._watch.message))
            self._life.end(Outcome(End.PANIC, message=self._watch.message))
