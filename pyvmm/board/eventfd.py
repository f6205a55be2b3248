"""Where the board's eventfds come from."""

from __future__ import annotations

import fcntl
import os
from typing import Final

FD_SETSIZE: Final = 1024
"""select() knows only the descriptors below (<sys/select.h>), and python-xlib waits with it."""


def high_eventfd() -> int:
    """An eventfd that takes no low descriptor where that can be helped: vectors and doorbells may be thousands."""
    low = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE)
    except OSError:  # RLIMIT_NOFILE is no higher
        return low
    os.close(low)
    return high
