"""Fakes that several tests share."""

from __future__ import annotations


class AlwaysWritable:
    """select.poll() that says of every descriptor that it is ready."""

    def register(self, fd: int, events: int) -> None: ...

    def poll(self, timeout: int) -> list[tuple[int, int]]:
        return [(0, 0)]
