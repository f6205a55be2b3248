"""Doorbells by ioeventfd: a guest's write becomes a callback of the loop, or wakes whoever reads the eventfd, without
an exit."""

from __future__ import annotations

import os

from kvm_cffi import KvmError, Vm
from pyvmm.board.eventfd import high_eventfd
from pyvmm.bus import Bus
from pyvmm.loop import Loop
from pyvmm.pci.doorbell import Doorbell


class IoeventfdDoorbell:
    """One doorbell at one address; see pci.doorbell.WatchedDoorbell."""

    def __init__(self, doorbells: IoeventfdDoorbells, pio: bool, address: int, doorbell: Doorbell) -> None:
        self._doorbells = doorbells
        self._pio, self._address, self._doorbell = pio, address, doorbell
        self._fd = high_eventfd() if doorbell.fd is None else doorbell.fd
        try:
            self._ioeventfd()
        except KvmError:
            self._close()
            raise
        if doorbell.callback is not None:
            doorbells.loop.add(self._fd, self._rung)

    def _ioeventfd(self, deassign: bool = False) -> None:
        doorbell = self._doorbell
        self._doorbells.vm.ioeventfd(
            self._fd, self._address, doorbell.size, datamatch=doorbell.datamatch, pio=self._pio, deassign=deassign
        )

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        if self._doorbell.callback is not None:
            self._doorbell.callback()

    def remove(self) -> None:
        """Take the doorbell away; a ring that had not been answered yet is answered now."""
        if self._fd < 0:
            return
        self._ioeventfd(deassign=True)
        self._doorbells.active.discard(self)
        callback, rung = self._doorbell.callback, False
        if callback is not None:
            self._doorbells.loop.remove(self._fd)
            try:
                os.eventfd_read(self._fd)
                rung = True
            except BlockingIOError:
                pass
        self._close()
        if callback is not None and rung:
            callback()

    def _close(self) -> None:
        if self._doorbell.fd is None:
            os.close(self._fd)
        self._fd = -1


class IoeventfdDoorbells:
    """See pci.doorbell.Doorbells."""

    def __init__(self, vm: Vm, loop: Loop, pio: Bus) -> None:
        self.vm = vm
        self.loop = loop
        self.active: set[IoeventfdDoorbell] = set()
        self._pio = pio

    def add(self, bus: Bus, address: int, doorbell: Doorbell) -> IoeventfdDoorbell | None:
        try:
            watched = IoeventfdDoorbell(self, bus is self._pio, address, doorbell)
        except OSError:  # two doorbells at one address, or a limit: the write reaches the device by an exit
            return None
        self.active.add(watched)
        return watched

    def close(self) -> None:
        for doorbell in list(self.active):
            doorbell.remove()
