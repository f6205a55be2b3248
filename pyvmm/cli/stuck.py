"""The end of a machine that cannot be ended, for a device never returns, and with it the machine lock.

Everything that ends a machine waits for that lock: the loop that reads the user's keys, its timers, what signals post.
So a thread looks whether an end was asked for, and where the lock is not to be had then, tells who has it and ends the
process. It costs the machine nothing but a look at the terminal now and then.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from pyvmm import threads
from pyvmm.host.console import Console
from pyvmm.host.nonblocking import Output
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome

LOOK_S: Final = 0.5
"""How often the thread looks."""
PATIENCE: Final = 2.0
"""Seconds that the machine lock may be kept when an end was asked for."""
SLICES: Final = 20
"""A process that is stopped and continues finds at most one of so many parts of PATIENCE gone."""


class Watch:
    """A context manager around a machine's run and close.

    *asked* gives the outcome that a signal has asked for; *deadline*, on the clock of time.monotonic(), is that of
    --timeout; Ctrl-A x comes from *console*; *last_words* is called when all has been said.
    """

    def __init__(
        self,
        machine: Machine,
        console: Console,
        asked: Callable[[], Outcome | None],
        deadline: float | None,
        last_words: Callable[[], None],
    ) -> None:
        self._machine = machine
        self._console = console
        self._asked = asked
        self._deadline = deadline
        self._last_words = last_words
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watch", daemon=True)

    def __enter__(self) -> Self:
        threads.start(self._thread)
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._done.wait(LOOK_S):
            outcome = self._wanted()
            if outcome is None and self._console.waiting and not self._lock_is_free():
                outcome = Outcome(End.QUIT) if self._console.quit_typed() else None
            elif outcome is not None and self._lock_is_free():
                outcome = None
            if outcome is not None and not self._done.is_set():
                self._end(outcome)

    def _wanted(self) -> Outcome | None:
        """How the machine should be ending by now."""
        outcome = self._asked() or self._machine.outcome
        if outcome is None and self._deadline is not None and time.monotonic() > self._deadline:
            return Outcome(End.TIMEOUT)
        return outcome

    def _lock_is_free(self) -> bool:
        lock = self._machine.life.lock
        for _ in range(SLICES):
            if lock.acquire(timeout=PATIENCE / SLICES):
                lock.release()
                return True
        return False

    def _end(self, outcome: Outcome) -> None:
        try:
            text = f"pyvmm: {outcome}\npyvmm: {who_has_the_lock(self._machine)}\n"
            atexit._run_exitfuncs()  # the terminal and the host's devices go back
            errors = Output(2)
            errors.write(text.encode(errors="backslashreplace"), 1000)
            self._last_words()
        finally:
            os._exit(outcome.status)


def who_has_the_lock(machine: Machine) -> str:
    """A line that names the device that is in some thread's stack, and the stack; all stacks where there is none."""
    from pyvmm.machine import fault

    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {
        names.get(ident, str(ident)): fault.stack_at(frame)
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }
    for stack in stacks.values():
        found = fault.find(stack, machine.board.pci)
        if found is not None:
            return f"{found.line(f'has not returned for {PATIENCE:g} s')}\n{fault.describe_stack(found.stack)}"
    told = [f"{name}:\n{fault.describe_stack(stack)}" for name, stack in stacks.items()]
    return "\n".join([f"the machine lock is not to be had for {PATIENCE:g} s", *told])
