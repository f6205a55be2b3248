"""Interrupts and doorbells by eventfd: what KVM can carry between a guest and the loop without an exit.

One MSI vector is one eventfd with one GSI route, so that everything that will ever interrupt (a device here, another
thread, VFIO) only writes to a descriptor.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Final

from kvm_cffi import KvmError, Vm
from pyvmm.board.gsi import GsiTable
from pyvmm.bus import Bus
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.trace import OFF, Channel

FD_SETSIZE: Final = 1024
"""select() knows only the descriptors below (<sys/select.h>), and python-xlib waits with it."""


def high_eventfd() -> int:
    """An eventfd that takes no low descriptor where that can be helped: vectors and doorbells may be thousands."""
    low = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, FD_SETSIZE)
    except OSError:  # RLIMIT_NOFILE is no higher
        return low
    os.close(low)
    return high


class EventfdMsi:
    """One vector: an eventfd bound to a GSI (KVM_IRQFD) that sends the message; see pci.msi.MsiIrq.

    While masked the eventfd is not bound, so what others signal stays in its counter until unmask().
    """

    def __init__(self, vm: Vm, gsis: GsiTable, trace: Channel) -> None:
        self._vm = vm
        self._gsis = gsis
        self._trace = trace
        self._fd = high_eventfd()
        try:
            self._gsi = gsis.allocate()
        except UserError:
            os.close(self._fd)
            raise
        self._bound = False

    @property
    def fd(self) -> int | None:
        return self._fd

    def update(self, address: int, data: int) -> None:
        self._gsis.set_message(self._gsi, address, data)

    def mask(self) -> None:
        if self._bound:
            self._vm.irqfd(self._fd, self._gsi, deassign=True)
            self._bound = False

    def unmask(self) -> None:
        if not self._bound:
            self._vm.irqfd(self._fd, self._gsi)  # sends at once if the counter is not zero
            self._bound = True

    def pulse(self) -> None:
        if self._trace.enabled:
            self._trace(f"MSI by GSI {self._gsi}")
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        if self._fd >= 0:
            self.mask()
            os.close(self._fd)
            self._fd = -1
            self._gsis.free(self._gsi)


class EventfdMsiRouter:
    """Gives out vectors; close() takes all of them back."""

    def __init__(self, vm: Vm, gsis: GsiTable, trace: Channel = OFF) -> None:
        self._vm = vm
        self._gsis = gsis
        self._trace = trace
        self._vectors: list[EventfdMsi] = []

    def allocate(self) -> EventfdMsi:
        vector = EventfdMsi(self._vm, self._gsis, self._trace)
        self._vectors.append(vector)
        return vector

    def close(self) -> None:
        for vector in self._vectors:
            vector.close()
        self._vectors.clear()


class NoMsi:
    """A vector, and the router of it, where there is no local APIC: a message is a write that nobody answers."""

    fd: int | None = None

    def allocate(self) -> NoMsi:
        return self

    def update(self, address: int, data: int) -> None: ...

    def mask(self) -> None: ...

    def unmask(self) -> None: ...

    def pulse(self) -> None: ...

    def close(self) -> None: ...


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
