"""Message-signalled interrupts: how a vector's message gets to the guest.

At once by KVM_SIGNAL_MSI, from the moment the guest has unmasked it. A turn of the loop later by an eventfd with a GSI
route of its own (KVM_IRQFD, KVM_SET_GSI_ROUTING): that costs a third, and whoever holds the descriptor (another thread,
VFIO) interrupts the guest without us. KVM takes routes only as a whole table and lets nobody by meanwhile, so many
are set at once, ROUTES a turn of the loop, and then the eventfds are bound, BATCH a turn: a function has up to 2,048
vectors, and a guest enables them with one write. Where descriptors or routes run out, KVM_SIGNAL_MSI it stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import Final

from kvm_cffi import Vm
from pyvmm.board.eventfd import high_eventfd
from pyvmm.board.gsi import GsiTable
from pyvmm.trace import OFF, Channel

ROUTES: Final = 512
"""New routes set before the machine lock is given up: five milliseconds, of which the table is one or two."""

BATCH: Final = 128
"""Eventfds made and bound before the machine lock is given up: a few milliseconds."""

MASKED_AT_ONCE: Final = 16
"""Lent eventfds taken from KVM before the machine lock is given up: each waits 120 µs and more for the kernel."""


class EventfdMsi:
    """One vector; see pci.msi.MsiIrq.

    Nothing of ours signals the eventfd of a masked vector, so a mask leaves it bound. Once it has been lent (`fd`)
    others may: then it is bound only while the vector is unmasked and has the right route, and what is signalled
    meanwhile stays in its counter.
    """

    def __init__(self, router: EventfdMsiRouter) -> None:
        self._router = router
        self._message = (0, 0)
        self._masked = True
        self._gsi: int | None = None
        self._routed = (0, 0)
        self._fd = -1
        self._bound = False
        self._lent = False
        self._direct = False  # the eventfd is bound, and its route sends the message: pulse() may use it

    @property
    def fd(self) -> int | None:
        if not self._lent and self._take_gsi() and self._take_fd():
            self._lent = True
            if self._masked and self._bound:  # as thousands may be that a guest enables at one stroke
                self._router.unbind(self)
            else:
                self._changed()
        return self._fd if self._lent else None

    def update(self, address: int, data: int) -> None:
        self._message = (address, data)
        self._changed()

    def mask(self) -> None:
        self._masked = True
        if self._lent and self._bound:
            self._router.unbind(self)

    def unmask(self) -> None:
        self._masked = False
        self._router.stays(self)
        self._changed()

    def _changed(self) -> None:
        self._direct = self._bound and self._routed == self._message
        if self._direct:
            return
        if self._lent:
            self._unbind()
        if not self._masked:
            self._router.wait(self)

    def pulse(self) -> None:
        trace = self._router.trace
        if self._direct:
            if trace.enabled:
                trace(f"MSI by GSI {self._gsi}", ("msi",))
            os.eventfd_write(self._fd, 1)
        else:
            address, data = self._message
            if trace.enabled:
                trace(f"KVM_SIGNAL_MSI: vector {data & 0xFF:#x}", ("msi",))
            self._router.vm.signal_msi(address, data)

    def close(self) -> None:
        self._router.forget(self)
        if self._lent:
            self._unbind()  # somebody may have a copy of the descriptor
        if self._fd >= 0:
            # Closed for good it is bound no longer. To take it from KVM first would wait for the kernel each time.
            os.close(self._fd)
        if self._gsi is not None:
            self._router.gsis.free(self._gsi)
        self._fd, self._gsi, self._bound, self._lent, self._direct = -1, None, False, False, False

    # What the router does, a turn of the loop later

    def wants_route(self) -> tuple[int, tuple[int, int]] | None:
        """(GSI, message) where the kernel has not that route, None where it has or there is no GSI left."""
        if self._take_gsi() and self._routed != self._message:
            assert self._gsi is not None
            return self._gsi, self._message
        return None

    def routed(self) -> None:
        """The kernel has the route."""
        self._routed = self._message
        self._direct = self._bound

    def bind(self) -> None:
        """Let the eventfd send the message: at once, if somebody has signalled it already."""
        if self._gsi is None or self._bound or self._masked or not self._take_fd():
            return
        try:
            self._router.vm.irqfd(self._fd, self._gsi)
        except OSError:
            if self._lent:  # whoever has it relies on it
                raise
            return
        self._bound = self._direct = True
        trace = self._router.trace
        if self._lent and trace.enabled:
            address, data = self._message
            trace(f"eventfd {self._fd} -> irqfd -> GSI {self._gsi} -> {address:#x}, interrupt vector {data & 0xFF:#x}")

    def _take_gsi(self) -> bool:
        if self._gsi is None:
            self._gsi = self._router.gsis.allocate()
            self._routed = (0, 0)
        return self._gsi is not None

    def _take_fd(self) -> bool:
        if self._fd < 0:
            try:
                self._fd = high_eventfd()
            except OSError:
                return False
        return True

    def unbind(self) -> None:
        """The mask takes effect."""
        if self._masked:
            self._unbind()

    def _unbind(self) -> None:
        self._router.stays(self)
        if self._bound:
            assert self._gsi is not None
            self._router.vm.irqfd(self._fd, self._gsi, deassign=True)
        self._bound = self._direct = False


class EventfdMsiRouter:
    """Gives out vectors; close() takes all of them back. *defer* runs a call later under the machine lock."""

    def __init__(
        self, vm: Vm, gsis: GsiTable, defer: Callable[[Callable[[], None]], None], trace: Channel = OFF
    ) -> None:
        self.vm = vm
        self.gsis = gsis
        self.trace = trace
        self._defer = defer
        self._deferred = False
        self._vectors: dict[EventfdMsi, None] = {}
        self._waiting: dict[EventfdMsi, None] = {}
        self._leaving: dict[EventfdMsi, None] = {}
        self._left = 0
        """How many were unbound since the last turn of the loop."""

    def allocate(self) -> EventfdMsi:
        vector = EventfdMsi(self)
        self._vectors[vector] = None
        return vector

    def wait(self, vector: EventfdMsi) -> None:
        """*vector* wants its eventfd bound to a route; until then it does without."""
        self._waiting[vector] = None
        self._go_on_later()

    def unbind(self, vector: EventfdMsi) -> None:
        """*vector*, which is lent, is masked. Each waits for the kernel, so where a guest masks all of a function
        at one stroke, most are masked some milliseconds later; until then what comes is let through."""
        if not self._left and not self._leaving:
            self._defer(self._unbind_more)
        if self._left < MASKED_AT_ONCE:
            self._left += 1
            vector.unbind()
        else:
            self._leaving[vector] = None

    def stays(self, vector: EventfdMsi) -> None:
        """It is unmasked again, or unbound already."""
        self._leaving.pop(vector, None)

    def _unbind_more(self) -> None:
        self._left = 0
        for vector in list(self._leaving)[:MASKED_AT_ONCE]:
            self._leaving.pop(vector, None)
            self._left += 1
            vector.unbind()
        if self._left:
            self._defer(self._unbind_more)

    def forget(self, vector: EventfdMsi) -> None:
        """*vector* is closed."""
        self._vectors.pop(vector, None)
        self._leaving.pop(vector, None)
        self._waiting.pop(vector, None)

    def _go_on_later(self) -> None:
        if self._waiting and not self._deferred:
            self._deferred = True
            self._defer(self._go_on)

    def _go_on(self) -> None:
        """A turn: the next ROUTES routes of those that wait, or else the next BATCH of eventfds."""
        self._deferred = False
        routes = ((vector, route) for vector in self._waiting if (route := vector.wants_route()))
        wanted = list(islice(routes, ROUTES))
        if wanted:
            self.gsis.set_messages([(gsi, *message) for _, (gsi, message) in wanted])
            for vector, _ in wanted:
                vector.routed()
        else:
            for vector in list(self._waiting)[:BATCH]:
                del self._waiting[vector]
                vector.bind()
        self._go_on_later()

    def close(self) -> None:
        for vector in list(self._vectors):
            vector.close()


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
