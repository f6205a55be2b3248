"""Doorbells and MSI vectors by eventfd, with a VM that only remembers what it was asked for."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any, cast

from kvm_cffi import KvmError, Vm
from pyvmm.board.doorbell import IoeventfdDoorbell, IoeventfdDoorbells
from pyvmm.board.gsi import GsiTable
from pyvmm.board.msi import EventfdMsi, EventfdMsiRouter
from pyvmm.bus import Bus
from pyvmm.loop import Loop
from pyvmm.pci.doorbell import Doorbell

MESSAGE = 0xFEE00000


class FakeVm:
    """`doorbells` by (address, port I/O), `irqfds` by descriptor; `sent` is every message that got to the guest.

    `limit` is how many routes the kernel takes, `tables` how often it was given a whole table of them.
    """

    def __init__(self, limit: int) -> None:
        self.doorbells: dict[tuple[int, bool], int] = {}
        self.irqfds: dict[int, int] = {}
        self.routes: list[Any] = []
        self.sent: list[tuple[int, int]] = []
        self.signalled = 0
        self.limit = limit
        self.tables = 0

    def check_extension(self, name: str) -> int:
        return self.limit

    def set_gsi_routing(self, routes: list[Any]) -> None:
        assert len(routes) <= self.limit
        self.routes = routes
        self.tables += 1

    def signal_msi(self, address: int, data: int) -> bool:
        self.sent.append((address, data))
        self.signalled += 1
        return True

    def deliver(self) -> None:
        """What the kernel does as soon as a descriptor that it watches is written to: one message by its route."""
        for fd, gsi in list(self.irqfds.items()):
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue
            except OSError as error:
                assert error.errno == errno.EBADF
                del self.irqfds[fd]  # closed
                continue
            self.sent += [(route.address, route.data) for route in self.routes if route.gsi == gsi]

    def ioeventfd(
        self, fd: int, address: int, size: int, *, datamatch: int | None, pio: bool, deassign: bool = False
    ) -> None:
        if deassign:
            assert self.doorbells.pop((address, pio)) == fd
        elif (address, pio) in self.doorbells:
            raise KvmError(17, "KVM_IOEVENTFD")
        else:
            self.doorbells[address, pio] = fd

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        if deassign:
            assert self.irqfds.pop(fd) == gsi
        else:
            self.deliver()
            assert fd not in self.irqfds
            self.irqfds[fd] = gsi
            self.deliver()

    def write(self, address: int, times: int = 1) -> None:
        """The guest writes to memory."""
        os.eventfd_write(self.doorbells[address, False], times)


class EventfdBoard:
    def __init__(self, limit: int = 4096) -> None:
        self.vm = FakeVm(limit)
        self.loop = Loop(threading.RLock())
        self.mmio, self.pio = Bus("MMIO", 1 << 52), Bus("PIO", 1 << 16)
        self.doorbells = IoeventfdDoorbells(cast(Vm, self.vm), self.loop, self.pio)
        self.gsis = GsiTable(cast(Vm, self.vm), [])
        self.router = EventfdMsiRouter(cast(Vm, self.vm), self.gsis, self.loop.post)
        self.rung: list[str] = []

    def doorbell(self, address: int, name: str) -> IoeventfdDoorbell | None:
        return self.doorbells.add(self.mmio, address, Doorbell(lambda: self.rung.append(name)))

    def vector(self, data: int = 0x41) -> EventfdMsi:
        """One that the guest has given a message and unmasked."""
        vector = self.router.allocate()
        vector.update(MESSAGE, data)
        vector.unmask()
        return vector

    def settle(self) -> int:
        """Run the loop until it has nothing left to do; how many turns that took."""
        turns = 0
        while self.loop._posted:
            self.loop.run_once(0)
            turns += 1
        return turns

    def close(self) -> None:
        self.doorbells.close()
        self.router.close()
        self.loop.close()

    def open_files(self) -> int:
        return len(os.listdir("/proc/self/fd"))
