"""Where the board's eventfds come from."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Callable
from typing import Final

from pyvmm.loop import Loop

FD_SETSIZE: Final = 1024
"""select() knows only the descriptors below (<sys/select.h>), and python-xlib waits with it."""
RESERVE: Final = 256
"""Low descriptors that are left for everything else: who wants an eventfd for a guest's sake can do without."""


def high_eventfd() -> int:
    """An eventfd that takes no low descriptor where that can be helped: vectors and doorbells may be thousands.

    Raises OSError where there is none left but the last RESERVE.
    """
    low = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE)
    except OSError:  # RLIMIT_NOFILE is no higher
        if low < min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], FD_SETSIZE) - RESERVE:
            return low
        os.close(low)
        raise
    os.close(low)
    return high


def taken(fd: int) -> bool:
    """Whether an eventfd had been signalled, which it is no more."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True


def watched_eventfd(loop: Loop, call: Callable[[], None]) -> int:
    """An eventfd whose signals *loop* hears and tells *call* of. Raises OSError as high_eventfd() does."""
    fd = high_eventfd()

    def signalled() -> None:
        if taken(fd):
            call()

    loop.add(fd, signalled)
    return fd
