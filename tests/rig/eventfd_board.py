"""Doorbells and MSI vectors by eventfd, with a VM that only remembers what it was asked for."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

from kvm_cffi import KvmError, Vm
from pyvmm.board.doorbell import IoeventfdDoorbell, IoeventfdDoorbells
from pyvmm.board.gsi import GsiTable
from pyvmm.board.msi import EventfdMsi, EventfdMsiRouter
from pyvmm.bus import Bus
from pyvmm.loop import Loop

MESSAGE = 0xFEE00000


class FakeVm:
    """`doorbells` by (address, port I/O), `irqfds` by descriptor."""

    def __init__(self) -> None:
        self.doorbells: dict[tuple[int, bool], int] = {}
        self.irqfds: dict[int, int] = {}
        self.routes: list[Any] = []

    def check_extension(self, name: str) -> int:
        return 4096

    def set_gsi_routing(self, routes: list[Any]) -> None:
        self.routes = routes

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
            assert fd not in self.irqfds
            self.irqfds[fd] = gsi

    def write(self, address: int, times: int = 1) -> None:
        """The guest writes to memory."""
        os.eventfd_write(self.doorbells[address, False], times)


class EventfdBoard:
    def __init__(self) -> None:
        self.vm = FakeVm()
        self.loop = Loop(threading.RLock())
        self.mmio, self.pio = Bus("MMIO", 1 << 52), Bus("PIO", 1 << 16)
        self.doorbells = IoeventfdDoorbells(cast(Vm, self.vm), self.loop, self.pio)
        self.gsis = GsiTable(cast(Vm, self.vm), [])
        self.router = EventfdMsiRouter(cast(Vm, self.vm), self.gsis)
        self.rung: list[str] = []

    def doorbell(self, address: int, name: str) -> IoeventfdDoorbell | None:
        return self.doorbells.add(self.mmio, address, 0, None, lambda: self.rung.append(name))

    def vector(self) -> EventfdMsi:
        vector = self.router.allocate()
        vector.update(MESSAGE, 0x41)
        return vector

    def close(self) -> None:
        self.doorbells.close()
        self.router.close()
        self.loop.close()

    def open_files(self) -> int:
        return len(os.listdir("/proc/self/fd"))
