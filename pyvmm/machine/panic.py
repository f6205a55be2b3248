"""Seeing a Linux panic on the serial console: the kernel has no other way to tell a board without firmware.

Source: Linux kernel/panic.c, panic(): "Kernel panic - not syncing: " and the reason, since 2.4 in these words.
"""

from __future__ import annotations

import re

LINE_LIMIT = 512
_PANIC = re.compile(rb"^(?:<\d>)?(?:\[ *\d+\.\d+\](?:\[[^\]]*\])? )?(Kernel panic - not syncing.*)")


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
                match = _PANIC.match(self._line)
                if match:
                    self.message = match[1].decode("ascii", "replace")
                self._line.clear()
