"""The interrupts of a device of the host: which of them signals, and how that reaches the guest.

One of the three is on at a time, as the guest has programmed our capabilities; VFIO changes the number of vectors only
by letting go of all of them (VFIO_IRQ_INFO_NORESIZE). A vector's eventfd is that of our Messages, of which KVM makes
the guest's interrupt (irqfd) while the guest lets that vector through; what is signalled meanwhile it counts. While
somebody watches, a message goes by way of the loop, and is shown with its time.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from functools import partial
from typing import Final

from kvm_cffi import constants
from pyvmm.pci.device import PciDevice
from pyvmm.pci.msi import Messages
from pyvmm.vfio.access import Access
from pyvmm.vfio.host import IntxLine, Passthrough

INTX: Final = constants.VFIO_PCI_INTX_IRQ_INDEX
MSI: Final = constants.VFIO_PCI_MSI_IRQ_INDEX
MSIX: Final = constants.VFIO_PCI_MSIX_IRQ_INDEX
NAMES: Final = {INTX: "INTx", MSI: "MSI", MSIX: "MSI-X"}


class Interrupts:
    """Those of *function*, from its device by *access*."""

    def __init__(self, function: PciDevice, access: Access, passthrough: Passthrough) -> None:
        self._function = function
        self._access = access
        self._device = access.device
        self._passthrough = passthrough
        self._on: tuple[int, int] | None = None
        """Which of the three, and how many vectors of it."""
        self._fds: tuple[int | None, ...] = ()
        self._watched: list[int] = []
        """Eventfds that the loop reads in their stead."""
        self._line: IntxLine | None = None

    def _wanted(self) -> tuple[int, int] | None:
        """What the guest has programmed."""
        function = self._function
        msix, msi = function.msix, function.msi
        if function.slot is None:
            return None
        if msix is not None and msix.enabled:
            there = self._on[1] if self._on is not None and self._on[0] == MSIX else 0
            if msix.masked_all and not there:
                return None  # it is about to program its vectors
            return MSIX, max(there, msix.programmed, 1)
        if msi is not None and msi.enabled:
            return MSI, msi.granted
        return (INTX, 1) if function.interrupt_pin else None

    def follow(self) -> None:
        """The guest may have programmed something else."""
        wanted, before = self._wanted(), self._on
        if wanted == before:
            return
        more = wanted is not None and before is not None and wanted[0] == before[0]
        there = before[1] if more and before is not None else 0
        self.off()
        if wanted is None:
            return
        self._on = wanted
        index, count = wanted
        if index == INTX:
            self._intx_on()
            return
        messages: Messages | None = self._function.msix if index == MSIX else self._function.msi
        assert messages is not None
        if self._access.told:
            self._access.attempt(NAMES[index], lambda: self._watch(messages, count))
            self._set_triggers(index, self._watched)
        else:
            self._fds = messages.fds(count)
            self._set_triggers(index, self._fds)
        # What those that were on sent meanwhile is lost, and one interrupt too many does no harm.
        for fd in (self._watched or self._fds)[: min(there, count)]:
            if fd is not None:
                os.eventfd_write(fd, 1)

    def off(self) -> None:
        """None of them signals, and what they have signalled is forgotten."""
        if self._on is None:
            return
        index, _ = self._on
        self._on = None
        self._access.attempt(NAMES[index], lambda: self._device.disable(index))
        for fd in self._fds:
            if fd is not None:
                _drain(fd)
        self._fds = ()
        for fd in self._watched:
            self._passthrough.unwatch(fd)
        self._watched.clear()
        line, self._line = self._line, None
        if line is not None:
            line.close()
            self._function.set_intx(False)

    def _watch(self, messages: Messages, count: int) -> None:
        for vector in range(count):
            self._watched.append(self._passthrough.watch(partial(self._seen, messages, vector)))

    def _seen(self, messages: Messages, vector: int) -> None:
        self._access.tell(f"{messages.describe(vector)}, by the loop")
        messages.pulse(vector)

    def _set_triggers(self, index: int, fds: Sequence[int | None]) -> None:
        def set_all() -> None:
            possible = self._device.set_triggers(index, fds)
            if 0 < possible < len(fds):
                self._access.tell(f"{NAMES[index]}: the host has {possible} vectors, of {len(fds)}")
                self._device.set_triggers(index, fds[:possible])

        if self._access.attempt(f"{NAMES[index]}: no interrupts", set_all):
            numbers = " ".join("-" if fd is None else str(fd) for fd in fds)
            self._access.tell(f"{NAMES[index]}: eventfds {numbers}")

    def _intx_on(self) -> None:
        try:
            line = self._line = self._passthrough.intx(self._function, self._raised, self._ended)
        except OSError as error:  # no descriptor is left
            self._access.tell(f"INTx: no interrupts: {error}")
            return
        self._set_triggers(INTX, (line.trigger,))
        unmask = line.unmask
        if unmask is not None:
            self._access.attempt("INTx", lambda: self._device.unmask_by(INTX, unmask))

    def _raised(self) -> None:
        self._function.set_intx(True)

    def _ended(self) -> None:
        """The guest has ended an interrupt of the line, of whoever it was: a device that is still up signals again."""
        if self._function.intx_level:
            self._function.set_intx(False)
            self._access.attempt("INTx", lambda: self._device.unmask(INTX))

    def pending(self, vectors: range) -> int:
        """Which MSI-X *vectors* the device has signalled and the guest not heard of: bit 0 for the first."""
        msix = self._function.msix
        if msix is None or not vectors:
            return 0
        bits = msix.pending >> vectors.start & (1 << len(vectors)) - 1
        fds = self._fds[vectors.start : vectors.stop] if self._on is not None and self._on[0] == MSIX else ()
        poll = select.poll()
        by_fd = {fd: 1 << bit for bit, fd in enumerate(fds) if fd is not None}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            bits |= by_fd[fd]
        return bits


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass
