"""The transcript that the tests wait on: who waits for output never keeps the program from giving it."""

from __future__ import annotations

import threading

import pytest

from pyvmm.testing.patience import Patience
from pyvmm.testing.transcript import Transcript, TranscriptError


class Machinelike(Transcript):
    """A program that gives its output with a lock held, which a look at its progress needs too: it talks just then."""

    def __init__(self) -> None:
        super().__init__("a program")
        self.lock = threading.Lock()
        self.ready, self.looked = threading.Event(), threading.Event()
        self.talker = threading.Thread(target=self._talk, daemon=True)

    def _talk(self) -> None:
        with self.lock:
            self.ready.set()
            self.looked.wait(60)
            self.feed(b"done\n")

    def _progress(self) -> int:
        self.looked.set()
        with self.lock:
            return len(self._received)

    def patience(self, seconds: float = 0.0) -> Patience:
        patience = Patience(60, self.pid, self._progress)
        patience._seconds = 0.1  # looks again soon
        self.looked.clear()
        self.talker.start()
        self.ready.wait(60)
        return patience


def test_output_comes_while_patience_asks_the_program() -> None:
    program = Machinelike()
    told: list[str] = []
    waiter = threading.Thread(target=lambda: told.append(program.expect("done", 0.05)), daemon=True)
    waiter.start()
    waiter.join(60)
    assert told == ["done"]


def test_what_does_not_come() -> None:
    with pytest.raises(TranscriptError, match=r"'more' did not come within 0\.05 s of its own time"):
        Transcript("a program").expect("more", 0.05)
