"""How long a test waits: by what the program under test gets to do, not by the clock.

On a busy machine a program waits for a processor, which is no reason to give it up. What counts is the time that it
ran, or slept with nothing to do; and after every sign of progress the count begins again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from pyvmm.testing.process import cpu_time, threads, wants_to_run

PATIENCE = 180.0
"""Seconds of a program's own time, without a sign of progress, in which what should come next has come: many, for the
lab's processor is an emulated one, and does not know when it waits itself."""
LOOK_S = 0.5
"""Between two looks at what the program did."""
MOST = 10
"""Times that much in all: progress without end is none."""


class Patience:
    """What is left of *seconds* for the program *pid*; *progress* gives something else after each step of it."""

    def __init__(self, seconds: float, pid: int, progress: Callable[[], object] = lambda: None) -> None:
        self._seconds = seconds
        self._pid = pid
        self._progress = progress
        self._seen = progress()
        self._spent = self._in_all = 0.0
        self._looked, self._ran = time.monotonic(), self._cpu_time()

    def _cpu_time(self) -> float:
        if self._pid == os.getpid():  # the test is the program
            return time.process_time()
        total = 0.0
        for pid in {int(task.parts[2]) for task in threads(self._pid)}:
            try:
                total += cpu_time(pid)
            except OSError:  # it has just ended
                pass
        return total

    @property
    def is_over(self) -> bool:
        """Ask every LOOK_S or more often."""
        now = time.monotonic()
        if now - self._looked >= min(LOOK_S, self._seconds):
            ran = self._cpu_time()
            passed = now - self._looked
            if wants_to_run(self._pid):
                passed = min(passed, max(0.0, ran - self._ran))
            self._looked, self._ran = now, ran
            self._spent += passed
            self._in_all += passed
            seen = self._progress()
            if seen != self._seen:
                self._seen, self._spent = seen, 0.0
        return self._spent > self._seconds or self._in_all > MOST * self._seconds
