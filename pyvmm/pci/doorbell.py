"""Doorbells: writes of the guest that only say "look", so that no vCPU need wait for the device to hear them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyvmm.bus import Bus


class Doorbell(Protocol):
    """One registered doorbell."""

    def remove(self) -> None: ...


class Doorbells(Protocol):
    """Where a write can be turned into a call without the vCPU waiting for it: KVM's ioeventfd."""

    def add(
        self, bus: Bus, address: int, size: int, datamatch: int | None, callback: Callable[[], None]
    ) -> Doorbell | None:
        """Call back at each write of *size* bytes (0: any width) to *address* that writes *datamatch* (None: anything).

        None if that can't be done; the write then reaches the device through the bus. The callback comes under the
        machine lock; the write is not passed to the device.
        """


class FakeDoorbells:
    """The doorbells of the unit tests: `ring` is a guest's write, true if a doorbell took it."""

    def __init__(self) -> None:
        self.active: dict[tuple[str, int], tuple[int, int | None, Callable[[], None]]] = {}

    def add(
        self, bus: Bus, address: int, size: int, datamatch: int | None, callback: Callable[[], None]
    ) -> FakeDoorbell:
        key = (bus.name, address)
        if key in self.active:
            raise ValueError(f"two doorbells at {address:#x}")
        self.active[key] = (size, datamatch, callback)
        return FakeDoorbell(self, key)

    def ring(self, bus: Bus, address: int, size: int, value: int) -> bool:
        entry = self.active.get((bus.name, address))
        if entry is None or entry[0] not in (0, size) or entry[1] not in (None, value):
            return False
        entry[2]()
        return True


class FakeDoorbell:
    def __init__(self, owner: FakeDoorbells, key: tuple[str, int]) -> None:
        self._owner = owner
        self._key = key

    def remove(self) -> None:
        del self._owner.active[self._key]
