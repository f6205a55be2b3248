"""What udev tells of, where a test can have it otherwise than the kernel of the day: the rest is in tests/boot."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

from pyvmm.host.capture.udev import UdevFinder


class Monitor:
    """pyudev's, with what poll() is to give; an OSError is raised."""

    def __init__(self, *given: Any) -> None:
        self.given = list(given)

    def poll(self, timeout: float) -> Any:
        assert timeout == 0
        if not self.given:
            return None
        first = self.given.pop(0)
        if isinstance(first, OSError):
            raise first
        return first


def finder(monitor: Monitor, *nodes: str | None) -> UdevFinder:
    found = UdevFinder.__new__(UdevFinder)
    found._monitor = monitor
    found._context = SimpleNamespace(
        list_devices=lambda subsystem: [SimpleNamespace(device_node=node) for node in nodes if subsystem == "input"]
    )
    return found


def uevent(action: str, node: str | None) -> SimpleNamespace:
    return SimpleNamespace(action=action, device_node=node)


def test_event_nodes_that_come() -> None:
    monitor = Monitor(
        uevent("add", None),
        uevent("add", "/dev/input/mouse3"),
        uevent("add", "/dev/input/event7"),
        uevent("remove", "/dev/input/event2"),
        uevent("add", "/dev/input/event8"),
    )
    assert finder(monitor).added() == ["/dev/input/event7", "/dev/input/event8"]
    assert finder(monitor).added() == []


def test_after_more_events_than_the_socket_holds_all_devices_are_looked_at() -> None:
    lost = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    monitor = Monitor(uevent("add", "/dev/input/event7"), lost, uevent("add", "/dev/input/event9"))
    there = finder(monitor, None, "/dev/input/mice", "/dev/input/event7", "/dev/input/event8", "/dev/input/event9")
    assert there.added() == ["/dev/input/event7", "/dev/input/event8", "/dev/input/event9"]
    assert there.added() == ["/dev/input/event9"]  # known by then
