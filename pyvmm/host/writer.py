"""Snapshots on their way into the file of --save, in a thread of its own: the machine runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyvmm import threads
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.machine.snapshot import Snapshot
from pyvmm.units import MIB

Tell = Callable[[str], None]


class Slowly:
    """Says once a second how far something is: nothing of what takes less."""

    def __init__(self, what: str, say: Tell) -> None:
        self._what = what
        self._say = say
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= 1:
            self._said = now
            self._say(f"{self._what}: {100 * done // total} % of {total // MIB} MiB")


class _GivenUp(Exception):
    """The machine ended first."""


class SnapshotWriter:
    """*tell* gets the lines for the user, and *written* an error or None when one was written, both in the loop."""

    def __init__(
        self, path: Path, loop: Loop, tell: Tell, written: Callable[[UserError | None], None] = lambda error: None
    ) -> None:
        self._path = path
        self._loop = loop
        self._tell = tell
        self._written = written
        self._thread: threading.Thread | None = None
        self._give_up = self._given_up = False
        self._result: list[UserError | None] = []
        """Of what was written, until it is told."""

    def write(self, snapshot: Snapshot) -> None:
        """Begin to; in the loop. One that comes while another is being written is told to come later."""
        if self._thread is not None and self._thread.is_alive():
            self._tell(f"{self._path} is being written: this snapshot is in memory alone")
            return
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="snapshot")
        threads.start(self._thread)

    def _write(self, snapshot: Snapshot) -> None:
        slowly = Slowly(f"writing {self._path}", self._say)

        def progress(done: int, total: int) -> None:
            if self._give_up:
                raise _GivenUp
            slowly(done, total)

        try:
            snapshot.save(self._path, progress)
        except _GivenUp:
            self._given_up = True
            return
        except UserError as error:
            self._result.append(error)
        else:
            self._result.append(None)
        self._loop.post(self._end)

    def _say(self, text: str) -> None:
        self._loop.post(lambda: self._tell(text))

    def _end(self) -> None:
        while self._result:
            error = self._result.pop()
            self._tell(f"wrote {self._path}" if error is None else str(error))
            self._written(error)

    def close(self, give_up: bool) -> None:
        """Wait for what is being written, or *give_up* on it: then the file is what it was."""
        self._give_up = give_up
        if self._thread is not None:
            self._thread.join()
            if self._given_up:
                self._tell(f"{self._path} was not written: the machine ended first")
            self._end()
