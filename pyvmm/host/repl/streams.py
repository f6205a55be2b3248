"""sys.stdout and sys.stderr while a statement of a prompt runs: what its thread prints is the prompt's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

Write = Callable[[str], None]


class ByThread:
    """A text stream that is *stream*, but for threads that print elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.elsewhere: dict[int, Write] = {}

    def write(self, text: str) -> int:
        write = self.elsewhere.get(threading.get_ident())
        if write is None:
            return self.stream.write(text)
        write(text)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() not in self.elsewhere:
            self.stream.flush()

    def isatty(self) -> bool:
        return threading.get_ident() not in self.elsewhere and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_GATE: Final = threading.Lock()
_NAMES: Final = ("stdout", "stderr")


@contextmanager
def printing_to(write: Write) -> Iterator[None]:
    """What this thread prints goes to *write*."""
    ident = threading.get_ident()
    with _GATE:
        for name in _NAMES:
            stream = getattr(sys, name)
            if not isinstance(stream, ByThread):
                stream = ByThread(stream)
                setattr(sys, name, stream)
            stream.elsewhere[ident] = write
    try:
        yield
    finally:
        with _GATE:
            for name in _NAMES:
                stream = getattr(sys, name)
                if isinstance(stream, ByThread):
                    stream.elsewhere.pop(ident, None)
                    if not stream.elsewhere:
                        setattr(sys, name, stream.stream)
