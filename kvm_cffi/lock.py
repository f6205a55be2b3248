"""A lock that Vcpu.run() can let go of and take again in the same C call that runs the guest."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from ._kvm import ffi, lib


class Lock:
    """A pthread mutex; a context manager. The GIL is released while a thread waits for it.

    Unlike threading.Lock it belongs to the thread that took it: taking it twice, or releasing another thread's, raises
    RuntimeError instead of waiting for ever.
    """

    def __init__(self) -> None:
        self._c: Any = ffi.new("struct kvm_cffi_lock *")
        lib.kvm_cffi_lock_init(self._c)

    def acquire(self) -> None:
        """Wait until no other thread has it, and take it."""
        if error := lib.kvm_cffi_lock_acquire(self._c):
            raise RuntimeError(f"the lock cannot be taken: {os.strerror(error)}")

    def release(self) -> None:
        """Let it go."""
        if error := lib.kvm_cffi_lock_release(self._c):
            raise RuntimeError(f"the lock cannot be released: {os.strerror(error)}")

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
