"""KeyboardInterrupt for code that runs in another thread: while it runs, and never after.

CPython raises what PyThreadState_SetAsyncExc() was given when that thread next executes Python; a call into C is not
interrupted. What was given cannot be taken back: with CPython 3.11 a NULL leaves the interpreter looking for it for
ever. So who has run something waits until it has come. Python/C API reference, "Initialization, Finalization, and
Threads".
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Interruptible:
    """Runs one function at a time, in whichever thread."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._thread: int | None = None
        self._on_its_way = False

        def arrived(error: BaseException) -> None:
            self._on_its_way = False

        # An exception is made where it is caught: that is when it has come.
        names = {"__init__": arrived, "__module__": "builtins"}
        self._error = type("KeyboardInterrupt", (KeyboardInterrupt,), names)

    def run(self, function: Callable[[], T]) -> T:
        """What *function* returns. Raises what it raises, and KeyboardInterrupt after interrupt()."""
        try:
            with self._gate:
                self._thread = threading.get_ident()
            return function()
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._thread is not None or self._on_its_way:
            try:
                with self._gate:
                    self._thread = None
                while self._on_its_way:
                    pass
            except KeyboardInterrupt:  # it has come just now
                pass

    def interrupt(self) -> bool:
        """From another thread; whether something runs."""
        with self._gate:
            if self._thread is None:
                return False
            if not self._on_its_way:
                self._on_its_way = True
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(self._error)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)
            return True
