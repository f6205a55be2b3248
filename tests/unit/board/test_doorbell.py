"""Doorbells by ioeventfd."""

from __future__ import annotations

import resource

from pyvmm.board.eventfd import FD_SETSIZE
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
    assert board.doorbells.add(board.pio, 0x1000, 1, None, lambda: None), "a port is another place"


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
