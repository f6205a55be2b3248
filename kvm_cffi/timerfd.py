"""A timer as a file descriptor; Python has them from 3.13 on."""

from __future__ import annotations

import contextlib
import os

from kvm_cffi._kvm import ffi, lib


class TimerFd:
    """Readable once its time has come: timerfd_create(2), CLOCK_MONOTONIC, which is time.monotonic_ns()."""

    def __init__(self) -> None:
        self.fd = int(lib.kvm_cffi_timerfd())
        if self.fd < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))

    def set(self, deadline: int) -> None:
        """Be readable from *deadline* on (ns), and not before; nothing once closed."""
        if self.fd >= 0:
            lib.kvm_cffi_timerfd_set(self.fd, max(deadline, 1))  # 0 would disarm it

    def take(self) -> None:
        """Be readable no more, until the next set() and its time."""
        with contextlib.suppress(BlockingIOError):  # it has been set anew
            os.read(self.fd, 8)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)
