"""Windows: memory of the host that a guest reaches at an address of a BAR without an exit."""

from __future__ import annotations

from typing import Protocol


class OpenWindow(Protocol):
    """A window at an address."""

    def remove(self) -> None:
        """The guest reaches it no longer when this comes back."""


class Windows(Protocol):
    """Where memory can be put under a guest's addresses: KVM's memory slots."""

    def open(self, address: int, buffer: memoryview) -> OpenWindow | None:
        """Put *buffer*, whole pages, at *address*, where nothing else is.

        None if that can't be done; accesses then reach the BAR's device through the bus.
        """


class FakeWindows:
    """The windows of the unit tests: `at` is what the guest reaches where."""

    def __init__(self) -> None:
        self.at: dict[int, memoryview] = {}

    def open(self, address: int, buffer: memoryview) -> FakeWindow:
        for start, other in self.at.items():
            if address < start + len(other) and start < address + len(buffer):
                raise ValueError(f"two windows at {max(address, start):#x}")
        self.at[address] = buffer
        return FakeWindow(self, address)


class FakeWindow:
    def __init__(self, owner: FakeWindows, address: int) -> None:
        self._owner = owner
        self._address = address

    def remove(self) -> None:
        del self._owner.at[self._address]
