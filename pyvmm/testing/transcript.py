"""What a program or a guest has printed, and waiting for more of it."""

from __future__ import annotations

import os
import re
import threading
import time

from pyvmm.testing.patience import LOOK_S, PATIENCE, Patience

SHOWN = 3000  # characters of output in a failure's message


class TranscriptError(AssertionError):
    """What was waited for did not come; the message ends with the last of the output."""


class Transcript:
    """Output collected as it comes, from any thread. Bytes that are no UTF-8 read as U+FFFD."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start = time.monotonic()
        self._received = bytearray()
        self._position = 0  # in the text: what expect() has consumed
        self._ended = False
        self._news = threading.Condition()

    @property
    def output(self) -> str:
        """Everything that has come so far."""
        with self._news:
            return self._received.decode(errors="replace")

    @property
    def pid(self) -> int:
        """The program's: this process, unless said otherwise."""
        return os.getpid()

    def patience(self, seconds: float = PATIENCE) -> Patience:
        """With the program, whose output is progress."""
        return Patience(seconds, self.pid, lambda: len(self._received))

    def feed(self, data: bytes) -> None:
        """More output; none is its end."""
        with self._news:
            self._received += data
            self._ended = not data
            self._news.notify_all()

    def expect(self, what: str | re.Pattern[str], timeout: float = PATIENCE) -> str:
        """Wait until *what* comes after what was last waited for; the text up to its end.

        Raises TranscriptError where *timeout* seconds pass (see Patience) or the output ends first.
        """
        pattern = re.compile(re.escape(what)) if isinstance(what, str) else what
        patience = self.patience(timeout)
        while True:
            with self._news:
                text = self._received.decode(errors="replace")
                if found := pattern.search(text, self._position):
                    passed = text[self._position : found.end()]
                    self._position = found.end()
                    return passed
                if self._ended:
                    raise self.error(f"{pattern.pattern!r} did not come before the end")
                silent = not self._news.wait(min(LOOK_S, timeout))
            # Not inside: patience may ask the machine, which waits for us while it has output.
            if silent and patience.is_over:
                raise self.error(f"{pattern.pattern!r} did not come within {timeout:g} s of its own time")

    def skip(self) -> None:
        """Wait for nothing of what has come so far."""
        with self._news:
            self._position = len(self._received.decode(errors="replace"))

    def error(self, text: str) -> TranscriptError:
        """*text*, when and where, and the last of the output."""
        seconds = time.monotonic() - self._start
        tail = self._received.decode(errors="replace")[-SHOWN:]
        return TranscriptError(f"{text} ({seconds:.1f} s after the start of {self.name}); the last output:\n{tail}")
