"""What takes the host long (a reset waits 100 ms, each vector that is enabled some microseconds), one after another,
and without the machine lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Say = Callable[[str], None]
Job = Callable[[Say], object]
"""Runs in another thread; what it says is told to who watches once it is done. OSError is told too."""
Submit = Callable[[Callable[[], None], Callable[[], None]], None]
"""(job, done): have *job*, which raises nothing, run by another thread, then *done* under the machine lock."""


class Jobs:
    """Those of one device. Every method is called under the machine lock."""

    def __init__(self, submit: Submit, tell: Say) -> None:
        self._submit = submit
        self._tell = tell
        self._waiting: deque[tuple[Job, Callable[[], None], bool]] = deque()
        self.busy = False

    def add(self, job: Job, done: Callable[[], None], *, short: bool = False) -> None:
        """Have *job* done when those before it are, then *done*; a *short* one here and now."""
        self._waiting.append((job, done, short))
        if not self.busy:
            self._next()

    def _next(self) -> None:
        self.busy = True
        job, done, short = self._waiting.popleft()
        said: list[str] = []

        def run() -> None:
            try:
                job(said.append)
            except OSError as error:
                said.append(str(error))

        def ended() -> None:
            for line in said:
                self._tell(line)
            self.busy = False
            done()
            if self._waiting and not self.busy:
                self._next()

        if short:
            run()
            ended()
        else:
            self._submit(run, ended)
