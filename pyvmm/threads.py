"""Threads that take no signal meant for the process.

The kernel gives such a signal to any thread that does not block it, and after a stop to whichever wakes first. Python
runs its handler in the main thread all the same, and does not wake that for it: one that sleeps in a system call hears
of the signal with the next event, or never. Source: signal(7), pthreads(7); Python's `signal`, "Signals and threads".
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterable
from typing import Final

OF_A_THREAD: Final = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)
"""What a thread brings on itself: a crash, and a stop for using the terminal in the background."""


def start(thread: threading.Thread, hears: Iterable[int] = ()) -> None:
    """Start *thread* with every signal blocked but OF_A_THREAD and *hears*, from its first instruction on."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - OF_A_THREAD - set(hears))
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Wakeup:
    """A sleep that set() ends, or has ended before it began. As threading.Event, but for one sleeper, and each call is
    one into C: an Event takes a lock of its own and a new one for each wait()."""

    def __init__(self) -> None:
        self._nothing = threading.Lock()  # held while there is nothing to wake up for
        self._nothing.acquire()

    def set(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # it is set already
            self._nothing.release()

    def clear(self) -> None:
        self._nothing.acquire(blocking=False)

    def wait(self) -> None:
        """Until set(), which this takes back."""
        self._nothing.acquire()
