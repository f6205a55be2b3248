"""What a stream of a device and what carries it on this host know of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm.clock import Clock


class Waiting(Clock, Protocol):
    """See loop.Loop."""

    def add(self, fd: int, callback: Callable[[], None], events: int = ...) -> None: ...

    def remove(self, fd: int) -> None: ...

    def post(self, callback: Callable[[], None]) -> None: ...


class StreamEnd(Protocol):
    """The device's side; under the machine lock."""

    output: Callable[[bytes], None]
    on_room: Callable[[], None] | None
    held: bool
    """Set while the device is to keep what it would write."""

    @property
    def listening(self) -> bool: ...

    def receive(self, data: bytes) -> int: ...

    def release(self) -> None:
        """Write on."""

    def connect(self) -> None: ...

    def hang_up(self) -> None: ...
