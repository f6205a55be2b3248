"""The signals that end a process, stop it and let it continue, in the hands of `pyvmm run`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGXCPU,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)
"""What ends a process unless it is handled (signal(7)), less the signals of a crash and what Python ignores."""


@contextmanager
def handled(handlers: dict[signal.Signals, Callable[[int], None]]) -> Iterator[None]:
    """Call *handlers* with the number of the signal that came; one that is ignored (nohup) stays so."""

    def handle(number: int, frame: FrameType | None) -> None:
        handlers[signal.Signals(number)](number)

    heard = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def stop_process() -> None:
    """Stop as SIGTSTP does by default, and come back with SIGCONT; at once where no shell is there to send it."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
