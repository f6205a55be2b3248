"""Writing the trace without ever making the machine wait for its reader: a bounded queue, and a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, TextIO

from pyvmm import threads
from pyvmm.trace import text_sink

LINES: Final = 1 << 16
"""Lines that wait for a slow reader, or one that stops, as a pager does; beyond that they are left out and counted."""
PATIENCE: Final = 2.0
"""Seconds that close() gives the reader for what still waits."""


class TraceWriter:
    """A sink (see trace.Sink) whose lines go to *stream* in their order; close() ends its thread."""

    def __init__(self, stream: TextIO) -> None:
        # A terminal is raw while the guest has it, and starts no line by itself.
        self._write = text_sink(stream, "\r\n" if stream.isatty() else "\n")
        self._lines: deque[tuple[int, str, str]] = deque()
        self._left_out = 0
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def __call__(self, ns: int, channel: str, message: str) -> None:
        if len(self._lines) >= LINES:
            self._left_out += 1
            return
        if self._left_out:
            self._lines.append((ns, "trace", f"{self._left_out} lines left out: the reader is too slow"))
            self._left_out = 0
        self._lines.append((ns, channel, message))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
            threads.start(self._thread)
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._lines:
                self._write(*self._lines.popleft())
            if self._closed and not self._lines:
                return

    def close(self) -> None:
        """Write what waits, as far as the reader takes it in PATIENCE seconds."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
