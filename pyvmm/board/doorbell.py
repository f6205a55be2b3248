"""Doorbells by ioeventfd: a guest's write becomes a callback of the loop, without an exit."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvm_cffi import KvmError, Vm
from pyvmm.board.eventfd import high_eventfd
from pyvmm.bus import Bus
from pyvmm.loop import Loop


class IoeventfdDoorbell:
    """One ioeventfd in the loop; see pci.decoder.Doorbell."""

    def __init__(
        self,
        doorbells: IoeventfdDoorbells,
        pio: bool,
        address: int,
        size: int,
        datamatch: int | None,
        callback: Callable[[], None],
    ) -> None:
        self._doorbells = doorbells
        self._pio, self._address, self._size, self._datamatch = pio, address, size, datamatch
        self._callback = callback
        self._fd = high_eventfd()
        try:
            doorbells.vm.ioeventfd(self._fd, address, size, datamatch=datamatch, pio=pio)
        except KvmError:
            os.close(self._fd)
            raise
        doorbells.loop.add(self._fd, self._rung)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        self._callback()

    def remove(self) -> None:
        """Take the doorbell away; a ring that had not been answered yet is answered now."""
        if self._fd < 0:
            return
        self._doorbells.vm.ioeventfd(
            self._fd, self._address, self._size, datamatch=self._datamatch, pio=self._pio, deassign=True
        )
        self._doorbells.loop.remove(self._fd)
        self._doorbells.active.discard(self)
        fd, self._fd = self._fd, -1
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            rung = False
        else:
            rung = True
        os.close(fd)
        if rung:
            self._callback()


class IoeventfdDoorbells:
    """Turns guest writes into callbacks of the loop; see pci.decoder.Doorbells."""

    def __init__(self, vm: Vm, loop: Loop, pio: Bus) -> None:
        self.vm = vm
        self.loop = loop
        self.active: set[IoeventfdDoorbell] = set()
        self._pio = pio

    def add(
        self, bus: Bus, address: int, size: int, datamatch: int | None, callback: Callable[[], None]
    ) -> IoeventfdDoorbell | None:
        try:
            doorbell = IoeventfdDoorbell(self, bus is self._pio, address, size, datamatch, callback)
        except OSError:  # two doorbells at one address, or a limit: the write reaches the device by an exit
            return None
        self.active.add(doorbell)
        return doorbell

    def close(self) -> None:
        for doorbell in list(self.active):
            doorbell.remove()
