"""Doorbells and MSI vectors by eventfd, with a VM that only remembers what it was asked for."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kvm_cffi import KvmError, MsiRoute, Vm
from pyvmm.board.eventfds import FD_SETSIZE, EventfdMsi, EventfdMsiRouter, IoeventfdDoorbell, IoeventfdDoorbells
from pyvmm.board.gsi import GsiTable
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


class Board:
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

    def open_files(self) -> int:
        return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.doorbells.close()
    board.router.close()
    board.loop.close()


def test_many_writes_are_one_call(board: Board) -> None:
    assert board.doorbell(0x1000, "a") and board.doorbell(0x1004, "b")
    board.vm.write(0x1000, 3)
    board.vm.write(0x1004)
    board.loop.run_once(0)
    assert sorted(board.rung) == ["a", "b"]
    board.loop.run_once(0)
    assert len(board.rung) == 2


def test_a_write_before_the_doorbell_goes_is_answered_as_it_goes(board: Board) -> None:
    """A BAR moves between the guest's write and the loop's turn: the kick must not be lost."""
    files = board.open_files()
    doorbell = board.doorbell(0x1000, "a")
    assert doorbell is not None
    board.vm.write(0x1000)
    doorbell.remove()
    assert board.rung == ["a"] and board.vm.doorbells == {}
    doorbell.remove()
    board.loop.run_once(0)
    assert board.rung == ["a"] and board.open_files() == files
    assert board.doorbell(0x1000, "b"), "the address is free again"


def test_two_doorbells_at_one_address(board: Board) -> None:
    files = board.open_files()
    assert board.doorbell(0x1000, "a")
    assert board.doorbell(0x1000, "b") is None, "the write reaches the device by an exit"
    assert board.open_files() == files + 1
    assert board.doorbells.add(board.pio, 0x1000, 1, None, lambda: None), "a port is another place"


def test_low_descriptors_are_left_for_select(board: Board) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > FD_SETSIZE, "raise the hard limit of open files (ulimit -Hn) for this test"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FD_SETSIZE, hard))
        assert board.doorbell(0x1000, "low") and (vector(board).fd or 0) < FD_SETSIZE
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert board.doorbell(0x2000, "high") and (vector(board).fd or 0) >= FD_SETSIZE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert board.vm.doorbells[0x1000, False] < FD_SETSIZE <= board.vm.doorbells[0x2000, False]


def vector(board: Board) -> EventfdMsi:
    vector = board.router.allocate()
    vector.update(MESSAGE, 0x41)
    return vector


def test_a_vector_is_an_eventfd_with_a_gsi(board: Board) -> None:
    one, two = vector(board), vector(board)
    assert {route.gsi for route in board.vm.routes} == {24, 25} and one.fd != two.fd
    assert board.vm.irqfds == {}
    assert one.fd is not None
    for _ in range(2):
        one.unmask()
        assert board.vm.irqfds == {one.fd: 24}
    one.pulse()
    assert os.eventfd_read(one.fd) == 1
    two.update(MESSAGE | 0x1000, 0x42)
    assert board.vm.routes == [MsiRoute(24, MESSAGE, 0x41), MsiRoute(25, MESSAGE | 0x1000, 0x42)]


def test_while_masked_it_is_not_bound_and_keeps_what_others_signal(board: Board) -> None:
    irq = vector(board)
    irq.unmask()
    irq.mask()
    irq.mask()
    assert board.vm.irqfds == {} and irq.fd is not None
    os.eventfd_write(irq.fd, 1)
    irq.unmask()
    assert os.eventfd_read(irq.fd) == 1, "KVM finds it as it binds the descriptor"


def test_a_vector_that_goes_gives_its_gsi_back(board: Board) -> None:
    files = board.open_files()
    irq = vector(board)
    irq.unmask()
    irq.close()
    irq.close()
    assert board.vm.irqfds == {} and board.vm.routes == [] and board.open_files() == files
    vector(board)
    assert [route.gsi for route in board.vm.routes] == [24]
