"""MSI vectors by eventfd."""

from __future__ import annotations

import os

from kvm_cffi import MsiRoute
from tests.rig.eventfd_board import MESSAGE, EventfdBoard


def test_a_vector_is_an_eventfd_with_a_gsi(board: EventfdBoard) -> None:
    one, two = board.vector(), board.vector()
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


def test_while_masked_it_is_not_bound_and_keeps_what_others_signal(board: EventfdBoard) -> None:
    irq = board.vector()
    irq.unmask()
    irq.mask()
    irq.mask()
    assert board.vm.irqfds == {} and irq.fd is not None
    os.eventfd_write(irq.fd, 1)
    irq.unmask()
    assert os.eventfd_read(irq.fd) == 1, "KVM finds it as it binds the descriptor"


def test_a_vector_that_goes_gives_its_gsi_back(board: EventfdBoard) -> None:
    files = board.open_files()
    irq = board.vector()
    irq.unmask()
    irq.close()
    irq.close()
    assert board.vm.irqfds == {} and board.vm.routes == [] and board.open_files() == files
    board.vector()
    assert [route.gsi for route in board.vm.routes] == [24]
