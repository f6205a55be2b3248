"""Frames in a file that Wireshark and tcpdump read: pcap, LINKTYPE_ETHERNET, times in nanoseconds.

A file header of 24 bytes, then each frame behind 16 bytes of its own. Source: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

from pyvmm.errors import UserError, printable

MAGIC_NS: Final = 0xA1B23C4D
LINKTYPE_ETHERNET: Final = 1
SNAP_LENGTH: Final = 262144
"""The most bytes of a frame, as tcpdump has it."""
FILE_HEADER: Final = struct.Struct("<IHHiIII")
"""magic, version 2.4, time zone, accuracy, snap length, link type."""
FRAME_HEADER: Final = struct.Struct("<IIII")
"""Seconds, nanoseconds, bytes here, bytes there were."""


class Dump:
    """The file *path*, made anew. UserError where it cannot be; a disk that is full ends it, and not what it shows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why it takes no more."""
        try:
            self._file = path.open("wb", buffering=1 << 16)
            self._file.write(FILE_HEADER.pack(MAGIC_NS, 2, 4, 0, 0, SNAP_LENGTH, LINKTYPE_ETHERNET))
            self._file.flush()
        except OSError as error:
            raise UserError(f"dump={printable(str(path))}: {error.strerror}: name a file that can be written") from None

    def frame(self, frame: bytes | bytearray | memoryview) -> None:
        if self.error is None:
            seconds, ns = divmod(time.time_ns(), 1_000_000_000)
            try:
                self._file.write(FRAME_HEADER.pack(seconds, ns, len(frame), len(frame)))
                self._file.write(frame)
            except OSError as error:
                self.error = error

    def flush(self) -> None:
        """Let others see what there is."""
        if self.error is None:
            try:
                self._file.flush()
            except OSError as error:
                self.error = error

    def close(self) -> None:
        self.flush()
        try:
            self._file.close()
        except OSError:
            pass
