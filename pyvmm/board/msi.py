"""Message-signalled interrupts by eventfd.

One MSI vector is one eventfd with one GSI route, so that everything that will ever interrupt (a device here, another
thread, VFIO) only writes to a descriptor.
"""

from __future__ import annotations

import os

from kvm_cffi import Vm
from pyvmm.board.eventfd import high_eventfd
from pyvmm.board.gsi import GsiTable
from pyvmm.errors import UserError
from pyvmm.trace import OFF, Channel


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
