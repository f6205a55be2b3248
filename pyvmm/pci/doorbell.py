"""Doorbells: writes of the guest that only say "look", so that no vCPU need wait for the device to hear them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyvmm.bus import Bus


@dataclass(frozen=True, eq=False)
class Doorbell:
    """A doorbell as its device makes it, once; it travels whole to whoever watches the address.

    It rings at each write of *size* bytes (0: any width) that writes *datamatch* (None: anything). *callback* is called
    for it, once for several rings, under the machine lock; None: somebody else (vhost) reads *fd*, an eventfd. Whoever
    watches makes an eventfd of its own where there is none.
    """

    callback: Callable[[], None] | None = None
    size: int = 0
    datamatch: int | None = None
    fd: int | None = None

    def __post_init__(self) -> None:
        if self.callback is None and self.fd is None:
            raise ValueError("a doorbell that nobody hears")


class WatchedDoorbell(Protocol):
    """A doorbell at an address."""

    def remove(self) -> None:
        """Watch no longer; what has rung by now is still heard."""


class Doorbells(Protocol):
    """Where a guest's write can ring without the vCPU waiting: KVM's ioeventfd."""

    def add(self, bus: Bus, address: int, doorbell: Doorbell) -> WatchedDoorbell | None:
        """Let writes to *address* ring. They are not passed to the device then.

        None if that can't be done; the write then reaches the device through the bus.
        """


class FakeDoorbells:
    """The doorbells of the unit tests: `ring` is a guest's write, true if a doorbell took it."""

    def __init__(self) -> None:
        self.active: dict[tuple[str, int], Doorbell] = {}

    def add(self, bus: Bus, address: int, doorbell: Doorbell) -> FakeWatchedDoorbell:
        key = (bus.name, address)
        if key in self.active:
            raise ValueError(f"two doorbells at {address:#x}")
        self.active[key] = doorbell
        return FakeWatchedDoorbell(self, key)

    def ring(self, bus: Bus, address: int, size: int, value: int) -> bool:
        doorbell = self.active.get((bus.name, address))
        if doorbell is None or doorbell.size not in (0, size) or doorbell.datamatch not in (None, value):
            return False
        if doorbell.callback is not None:
            doorbell.callback()
        elif doorbell.fd is not None:
            os.eventfd_write(doorbell.fd, 1)
        return True


class FakeWatchedDoorbell:
    def __init__(self, owner: FakeDoorbells, key: tuple[str, int]) -> None:
        self._owner = owner
        self._key = key

    def remove(self) -> None:
        del self._owner.active[self._key]
