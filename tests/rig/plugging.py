"""Devices that come and go under Linux, as often as PYVMM_SOAK_HOTPLUG says, and leave nothing behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Final

from tests.rig.guest import Guest

TIMES: Final = int(os.environ.get("PYVMM_SOAK_HOTPLUG", "3"))
WAIT: Final = "until {}; do usleep 20000; done"
"""In the guest."""


def gone(guest: Guest, *names: str) -> None:
    """Wait until *guest* has let go of them."""
    there = guest.machine.board.devices
    guest.until(lambda: there.keys().isdisjoint(names), f"an ejection of {', '.join(names)}")
    guest.machine.call(lambda: None)  # which comes when the loop is done with it


def unplug(guest: Guest, *names: str) -> None:
    for name in names:
        assert not guest.machine.unplug(name), "the guest is asked"
    gone(guest, *names)


def flat(guest: Guest, round_trip: Callable[[], None]) -> None:
    """TIMES over; from the first to the last nothing is left behind: descriptors, places on the buses, names."""

    def held() -> tuple[object, ...]:
        gc.collect()
        board = guest.machine.board
        return (
            len(os.listdir("/proc/self/fd")),
            len(board.pci.memory_decoder.bus.ranges),
            len(board.pci.io_decoder.bus.ranges),
            len(board.memory.regions),
            sorted(board.parts.with_state()),
            sorted(board.devices),
        )

    round_trip()
    before = held()
    for _ in range(TIMES - 1):
        round_trip()
    assert held() == before
