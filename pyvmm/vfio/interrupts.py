"""The interrupts of a device of the host: which of them signals, and how that reaches the guest.

One of the three is on at a time, as the guest has programmed our capabilities; VFIO changes the number of vectors only
by letting go of all of them (VFIO_IRQ_INFO_NORESIZE). A vector's eventfd is that of our Messages, of which KVM makes
the guest's interrupt (irqfd) while the guest lets that vector through; what is signalled meanwhile it counts. While
somebody watches, each interrupt goes by way of the loop, and is shown with its time.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvm_cffi import constants
from pyvmm.pci.device import PciDevice
from pyvmm.pci.msi import Messages
from pyvmm.vfio.access import Access
from pyvmm.vfio.host import IntxLine, Passthrough
from pyvmm.vfio.jobs import Job, Jobs, Say

INTX: Final = constants.VFIO_PCI_INTX_IRQ_INDEX
MSI: Final = constants.VFIO_PCI_MSI_IRQ_INDEX
MSIX: Final = constants.VFIO_PCI_MSIX_IRQ_INDEX
SHORT: Final = 32
"""Vectors that the host enables or disables in a few milliseconds; more are for another thread."""
NAMES: Final = {INTX: "INTx", MSI: "MSI", MSIX: "MSI-X"}


@dataclass(frozen=True)
class _Wanted:
    """Which of the three is on, how many vectors of it, and whether they go by way of the loop."""

    index: int
    count: int
    watched: bool


class Interrupts:
    """Those of *function*, from its device by *access*; *jobs* are the device's."""

    def __init__(self, function: PciDevice, access: Access, passthrough: Passthrough, jobs: Jobs) -> None:
        self._function = function
        self._access = access
        self._device = access.device
        self._passthrough = passthrough
        self._jobs = jobs
        self._on: _Wanted | None = None
        """What the device has been told, or is being told by a job."""
        self._fds: tuple[int | None, ...] = ()
        self._watched: list[int] = []
        """Eventfds that the loop reads in their stead."""
        self._line: IntxLine | None = None
        self._held = False
        self._said_lost = False
        self._then: Callable[[], None] | None = None
        """Who waits for none to be on."""

    def hold(self, then: Callable[[], None]) -> None:
        """None of them signals from now on until release(); *then* is called once that is so."""
        self._held, self._then = True, then
        self.follow()

    def release(self) -> None:
        """The guest may have them again."""
        self._held = False
        self.follow()

    def _wanted(self) -> _Wanted | None:
        """What the guest has programmed."""
        function, watched = self._function, self._access.told
        msix, msi = function.msix, function.msi
        if function.slot is None or self._held:
            return None
        if msix is not None and msix.enabled:
            there = self._on.count if self._on is not None and self._on.index == MSIX else 0
            if msix.masked_all and not there:
                return None  # it is about to program its vectors
            return _Wanted(MSIX, max(there, msix.programmed, 1), watched)
        if msi is not None and msi.enabled:
            return _Wanted(MSI, msi.granted, watched)
        return _Wanted(INTX, 1, watched) if function.interrupt_pin else None

    def follow(self) -> None:
        """The guest may have programmed something else, or somebody has begun or ceased to watch."""
        if self._jobs.busy:
            return  # it is looked at again when that is done
        wanted, before = self._wanted(), self._on
        if wanted == before:
            then, self._then = self._then, None
            if then is not None:
                then()
            return
        there = len(self._fds or self._watched)
        off = self._off(wanted)
        self._on = wanted
        fds = () if wanted is None else self._made(wanted)
        short = max(there, len(fds)) <= SHORT
        again = 0
        if wanted is not None and wanted.index != INTX:
            again = len(fds) if not short else there if before is not None and before.index == wanted.index else 0

        def job(say: Say) -> None:
            off(say)
            if wanted is not None:
                self._set_triggers(wanted.index, fds, say)

        def done() -> None:
            # What they sent meanwhile is lost, and one interrupt too many does no harm.
            for fd in fds[:again]:
                if fd is not None:
                    os.eventfd_write(fd, 1)
            self.follow()

        self._jobs.add(job, done, short=short)

    def close(self) -> None:
        """None of them signals any more; no job is under way."""
        self._held = True
        self._off(None)(self._access.tell)
        self._on = None

    def _off(self, next_one: _Wanted | None) -> Job:
        """What lets go of those that are on; what they have signalled is forgotten, unless they go on as *next_one*."""
        on, fds, watched, line = self._on, self._fds, tuple(self._watched), self._line
        self._fds, self._line = (), None
        self._watched.clear()
        if on is None:
            return lambda say: None
        goes_on = next_one is not None and next_one.index == on.index
        if line is not None:
            line.close()  # what the device signals from here on, nobody hears
            self._function.set_intx(False)
        for fd in watched:
            self._passthrough.unwatch(fd)

        def job(say: Say) -> None:
            self._attempt(on.index, lambda: self._device.disable(on.index), say)
            for fd in fds:
                if fd is not None and not goes_on:
                    _drain(fd)

        if goes_on and next_one is not None and next_one.watched and on.index != INTX:
            self._move_counted(on.index, fds)
        return job

    def _move_counted(self, index: int, fds: Sequence[int | None]) -> None:
        """What a masked vector's eventfd holds waits from now on in our pending bits."""
        messages = self._messages(index)
        for vector, fd in enumerate(fds):
            if fd is not None and _drain(fd):
                messages.pulse(vector)

    def _messages(self, index: int) -> Messages:
        messages: Messages | None = self._function.msix if index == MSIX else self._function.msi
        assert messages is not None
        return messages

    def _made(self, wanted: _Wanted) -> tuple[int | None, ...]:
        """The eventfds that the device is to signal; none where this host has none left."""
        try:
            if wanted.index == INTX:
                seen = self._access.tell if wanted.watched else None
                line = self._line = self._passthrough.intx(self._function, self._raised, self._ended, seen)
                return (line.trigger,)
            messages = self._messages(wanted.index)
            if wanted.watched:
                for vector in range(wanted.count):
                    self._watched.append(self._passthrough.watch(partial(self._seen, messages, vector)))
                return tuple(self._watched)
            self._fds = messages.fds(wanted.count)
            if None in self._fds:
                self._say_lost(wanted.index)
            return self._fds
        except OSError as error:
            self._access.tell(f"{NAMES[wanted.index]}: no interrupts: {error}")
            self._say_lost(wanted.index)
            return tuple(self._watched)

    def _say_lost(self, index: int) -> None:
        if not self._said_lost:  # a guest asks for them as often as it likes
            self._said_lost = True
            self._passthrough.say(
                f"device {self._access.name}: the guest does not hear all of its {NAMES[index]} interrupts: this host "
                "has no descriptor left for them (raise ulimit -n), or KVM no route"
            )

    def _seen(self, messages: Messages, vector: int) -> None:
        self._access.tell(f"{messages.describe(vector)}, by the loop")
        messages.pulse(vector)

    def _attempt(self, index: int, call: Callable[[], object], say: Say) -> bool:
        try:
            call()
        except OSError as error:
            say(f"{NAMES[index]}: {error}")
            return False
        return True

    def _set_triggers(self, index: int, fds: Sequence[int | None], say: Say) -> None:
        def set_all() -> None:
            possible = self._device.set_triggers(index, fds)
            if 0 < possible < len(fds):
                say(f"{NAMES[index]}: the host has {possible} vectors, of {len(fds)}")
                self._device.set_triggers(index, fds[:possible])

        if not fds or not self._attempt(index, set_all, say):
            return
        say(f"{NAMES[index]}: eventfds {' '.join('-' if fd is None else str(fd) for fd in fds)}")
        line = self._line
        if index == INTX and line is not None and line.unmask is not None:
            unmask = line.unmask
            self._attempt(index, lambda: self._device.unmask_by(INTX, unmask), say)

    def _raised(self) -> None:
        if self._access.told:
            self._access.tell("INTx up, by the loop")
        self._function.set_intx(True)

    def _ended(self) -> None:
        """The guest has ended an interrupt of the line, of whoever it was: a device that is still up signals again."""
        if self._function.intx_level or (self._line is not None and self._line.is_up):
            if self._access.told:
                self._access.tell("INTx: the guest has ended it, the device is unmasked")
            self._function.set_intx(False)
            self._access.attempt("INTx", lambda: self._device.unmask(INTX))

    def pending(self, index: int, vectors: range) -> int:
        """Which *vectors* of MSI or MSI-X the device has signalled and the guest not heard of: bit 0 for the first."""
        if not vectors:
            return 0
        bits = self._messages(index).pending >> vectors.start & (1 << len(vectors)) - 1
        fds = self._fds[vectors.start : vectors.stop] if self._on is not None and self._on.index == index else ()
        poll = select.poll()
        by_fd = {fd: 1 << bit for bit, fd in enumerate(fds) if fd is not None}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(0):
            bits |= by_fd[fd]
        return bits


def _drain(fd: int) -> bool:
    """Whether it had been signalled."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
