"""Output to the user's terminal or pipe that never waits, whatever its reader does.

O_NONBLOCK belongs to the open file description, which the terminal shares with the user's shell. So what is behind the
descriptor is opened once more, and the flag set there. A regular file or a socket is written to as it is.
"""

from __future__ import annotations

import os
import select
import stat
import time
from typing import Final

CHUNK: Final = 512
"""Bytes that a pipe which polls writable takes at once, even one that cannot be opened again (POSIX PIPE_BUF)."""
RETRY_MS: Final = 10


def open_nonblocking(fd: int) -> int:
    """A descriptor of our own that writes to the terminal or pipe behind *fd* without waiting; -1 for anything else."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if not (os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode)):
            return -1
        try:
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:  # no /proc, or the terminal is another user's, as after su
            os.tcgetpgrp(fd)  # ENOTTY unless it is our controlling terminal, and so also
            return os.open("/dev/tty", flags)
    except OSError:
        return -1


class Output:
    """A descriptor to write to; close() leaves the user's open."""

    def __init__(self, fd: int) -> None:
        self._users = fd
        self._own = open_nonblocking(fd)
        self.fd = fd if self._own < 0 else self._own
        """For a loop that waits until there is room."""
        # Without a description of our own, room for one byte is all that a terminal promises.
        self._chunk = 1 if self._own < 0 and os.isatty(fd) else CHUNK
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLOUT)

    def write(self, data: bytes | bytearray, patience: int = 0) -> int:
        """Write as much of *data* as is taken, waiting up to *patience* ms for each piece; how many bytes that were.

        Raises OSError when nobody reads any more.
        """
        done = 0
        while done < len(data) and self._poll.poll(patience):
            try:
                done += os.write(self.fd, data[done : done + self._chunk])
            except BlockingIOError:  # somebody else was quicker, or there is room for less than a line's end takes
                patience -= RETRY_MS
                if patience < 0:
                    break
                time.sleep(RETRY_MS / 1000)
        return done

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own, self.fd = -1, self._users
