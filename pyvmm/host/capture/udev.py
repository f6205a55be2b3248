"""Which input devices the host has, and which come: pyudev. Import this only when evdev is wanted."""

from __future__ import annotations

import os

from pyvmm.errors import UserError


class UdevFinder:
    """Enumerates /dev/input/event* and follows what is plugged in.

    With udevd, its own events count: they come when it has set the permissions of a new node. Without it, the kernel's.
    """

    def __init__(self) -> None:
        try:
            import pyudev

            self._context = pyudev.Context()
            source = "udev" if os.path.exists("/run/udev/control") else "kernel"
            self._monitor = pyudev.Monitor.from_netlink(self._context, source)
            self._monitor.filter_by("input")
            self._monitor.start()
        except (ImportError, OSError) as error:
            raise UserError(f"evdev needs libudev, and that says {error}: install libudev1") from None

    def paths(self) -> list[str]:
        """Every /dev/input/event* now."""
        devices = self._context.list_devices(subsystem="input")
        return [device.device_node for device in devices if _is_event_node(device.device_node)]

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def added(self) -> list[str]:
        """The nodes that have come since the last call; or all there are, where the kernel could not keep count."""
        paths = []
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                if device.action == "add" and _is_event_node(device.device_node):
                    paths.append(device.device_node)
        except OSError:  # ENOBUFS: more came than the socket holds, while the process was stopped perhaps
            return self.paths()
        return paths

    def close(self) -> None:
        """Nothing to do: the descriptor goes with the monitor."""


def _is_event_node(path: str | None) -> bool:
    return path is not None and os.path.basename(path).startswith("event")
