"""A tap: several may listen to one stream of values, each until it takes its hand off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Handle(Generic[T]):
    """One listener; remove() ends it, once is enough."""

    def __init__(self, tap: Tap[T], callback: Callable[[T], None]) -> None:
        self._tap = tap
        self.callback = callback

    def remove(self) -> None:
        self._tap._remove(self)


class Tap(Generic[T]):
    """Calls every listener with each value, in the order in which they came; under the machine lock."""

    def __init__(self) -> None:
        self._handles: tuple[Handle[T], ...] = ()  # replaced, never changed: a call goes over those that there were
        self._gate = threading.Lock()

    def add(self, callback: Callable[[T], None]) -> Handle[T]:
        """Call *callback* with each value from now on."""
        handle = Handle(self, callback)
        with self._gate:
            self._handles = (*self._handles, handle)
        return handle

    def _remove(self, handle: Handle[T]) -> None:
        with self._gate:
            self._handles = tuple(other for other in self._handles if other is not handle)

    def __call__(self, value: T) -> None:
        for handle in self._handles:
            handle.callback(value)
