"""Seeing a Linux panic on the serial console: the kernel has no other way to tell a board without firmware.

Source: Linux kernel/panic.c, panic(): "Kernel panic - not syncing: " and the reason, since 2.4 in these words;
as its last words "---[ end Kernel panic - not syncing: " and the reason again, " ]---" behind it since 4.20. The first
line may be cut in two by what a process prints at the same time, the last is written when all else has ended.
"""

from __future__ import annotations

import re

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
