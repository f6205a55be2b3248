"""The timeline of a machine, switched on and off while it runs: Timeline(machine, path), close().

A thread takes out what was recorded, several times a second, and puts it aside; while the guest does little it makes
the trace of it, and of the rest at the end. Off, nothing of it is there: no observer sees an exit, a callback or a
channel.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyvmm import guests, threads
from pyvmm.control.timeline.record import LIMIT, NO_VALUE, POINT, Recorder
from pyvmm.control.timeline.spool import Spool
from pyvmm.control.timeline.writer import PerfettoWriter
from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine

PERIOD: Final = 0.05
"""Seconds between two looks at what was recorded."""
REST: Final = 500
"""Tuples in a period; a guest that makes fewer is at rest."""
BATCH: Final = 32
"""Records that are made into messages before others may run: some hundred microseconds."""

Progress = Callable[[int, int], None]
"""Bytes done, of how many."""


class Timeline:
    """Of *machine*, into the file *path*. A context manager; raises UserError where that cannot be written, without
    Perfetto's package, where the machine has a timeline already, and inside a callback of the machine. *progress* is
    told how far the end is."""

    def __init__(self, machine: Machine, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        machine.life.outside("Timeline()")
        self.path = Path(path)
        self.error: UserError | None = None
        """Why the file ends before the machine did."""
        self._machine = machine
        self._progress = progress
        self._recorder = Recorder(machine.board, machine.trace)
        self._closing = threading.Event()
        self._closed = False
        self._open = ExitStack()
        self._thread = threading.Thread(target=self._main, name="timeline", daemon=True)
        with ExitStack() as undo:
            undo.callback(self._open.close)
            try:
                self._spool = Spool(self.path)
                self._open.callback(self._spool.close)
                self._file = self._open.enter_context(open(self.path, "wb"))
                self._writer = PerfettoWriter(self._file, _title(machine), os.getpid(), time.monotonic_ns())
            except OSError as error:
                raise self._failed(error) from None
            undo.callback(self._switch_off)
            self._switch_on()
            threads.start(self._thread)
            undo.pop_all()

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"cannot write the timeline {self.path}: {error.strerror}")

    def _switch_on(self) -> None:
        machine, recorder = self._machine, self._recorder
        machine.trace.listen(recorder.heard)

        def watch() -> None:
            recorder.remapped()
            for bus in (machine.board.pio, machine.board.mmio):
                bus.changed = recorder.remapped
            machine.life.loop.observer = recorder.called
            machine.life.cpus.observe(recorder)

        machine.call(watch)

    def _switch_off(self) -> None:
        machine, recorder = self._machine, self._recorder
        if machine.trace.listener != recorder.heard:
            return
        machine.trace.listen(None)
        machine.life.cpus.unobserve(recorder)
        machine.life.loop.observer = None
        for bus in (machine.board.pio, machine.board.mmio):
            bus.changed = None

    def close(self) -> None:
        """Switch it off and write what is left; once is enough. `error` says whether the file is whole."""
        if self._closed:
            return
        self._machine.life.outside("Timeline.close()")
        self._closed = True
        self._switch_off()
        self._closing.set()
        self._thread.join()
        try:
            self._open.close()
        except OSError as error:
            self.error = self.error or self._failed(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # The thread

    def _main(self) -> None:
        try:
            while not self._closing.wait(PERIOD):
                if self._put_aside() < REST:
                    self._make_some()
            self._finish()
        except OSError as error:  # the machine goes on without
            self._switch_off()
            self.error = self._failed(error)  # now: who sees it finds the timeline off

    def _put_aside(self) -> int:
        """Take out what was recorded up to now; how much that was."""
        left = total = len(self._recorder)
        if total >= LIMIT:
            self._spool.put(
                [("timeline", time.monotonic_ns(), POINT, "events are left out: too many", NO_VALUE, (), ())]
            )
        while left > 0:
            with self._machine.life.lock:
                records = self._recorder.take()
            if not records:  # the oldest had to make room meanwhile
                break
            self._spool.put(records)
            left -= len(records)
        return total

    def _make_some(self) -> None:
        """Make messages until the guest is busy again, or a period is over."""
        end = time.monotonic() + PERIOD
        while time.monotonic() < end and len(self._recorder) < REST:
            records = self._spool.take()
            if not records:
                break
            for at in range(0, len(records), BATCH):
                self._writer.write(records[at : at + BATCH])
                time.sleep(0)  # whoever waits for the interpreter goes first
        self._file.flush()

    def _finish(self) -> None:
        with self._machine.life.lock:
            self._recorder.finish()
        self._put_aside()
        total = self._spool.waiting
        while records := self._spool.take():
            self._writer.write(records)
            if self._progress is not None:
                self._progress(total - self._spool.waiting, total)
        self._file.flush()


def _title(machine: Machine) -> str:
    config = machine.config
    return f"pyvmm {(config.kernel or Path(config.guest or guests.DEFAULT)).name}"
