"""Doorbells by ioeventfd."""

from __future__ import annotations

import os
import resource

import pytest

from pyvmm.board.eventfd import FD_SETSIZE
from pyvmm.pci.doorbell import Doorbell
from tests.rig.eventfd_board import EventfdBoard


def test_many_writes_are_one_call(board: EventfdBoard) -> None:
    assert board.doorbell(0x1000, "a") and board.doorbell(0x1004, "b")
    board.vm.write(0x1000, 3)
    board.vm.write(0x1004)
    board.loop.run_once(0)
    assert sorted(board.rung) == ["a", "b"]
    board.loop.run_once(0)
    assert len(board.rung) == 2


def test_a_write_before_the_doorbell_goes_is_answered_as_it_goes(board: EventfdBoard) -> None:
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


def test_two_doorbells_at_one_address(board: EventfdBoard) -> None:
    files = board.open_files()
    assert board.doorbell(0x1000, "a")
    assert board.doorbell(0x1000, "b") is None, "the write reaches the device by an exit"
    assert board.open_files() == files + 1
    assert board.doorbells.add(board.pio, 0x1000, Doorbell(lambda: None, 1)), "a port is another place"


def test_low_descriptors_are_left_for_select(board: EventfdBoard) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > FD_SETSIZE, "raise the hard limit of open files (ulimit -Hn) for this test"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FD_SETSIZE, hard))
        assert board.doorbell(0x1000, "low") and 0 < (board.vector().fd or 0) < FD_SETSIZE
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert board.doorbell(0x2000, "high") and (board.vector().fd or 0) >= FD_SETSIZE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert board.vm.doorbells[0x1000, False] < FD_SETSIZE <= board.vm.doorbells[0x2000, False]


def test_a_doorbell_whose_eventfd_somebody_else_reads(board: EventfdBoard) -> None:
    """As vhost does: the loop leaves it alone, and so does whoever moves the BAR."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    files = board.open_files()
    doorbell = Doorbell(fd=fd)
    try:
        first = board.doorbells.add(board.mmio, 0x1000, doorbell)
        assert first is not None and board.vm.doorbells == {(0x1000, False): fd}
        board.vm.write(0x1000, 2)
        board.loop.run_once(0)
        first.remove()
        assert board.vm.doorbells == {} and board.open_files() == files
        second = board.doorbells.add(board.mmio, 0x2000, doorbell)
        assert second is not None
        board.vm.write(0x2000)
        assert os.eventfd_read(fd) == 3, "nothing that rang is lost"
        second.remove()
    finally:
        os.close(fd)


def test_a_doorbell_of_nobody() -> None:
    with pytest.raises(ValueError, match="nobody hears"):
        Doorbell()
