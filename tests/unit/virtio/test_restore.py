"""A virtio function brought back: what was on its way when it was saved is neither lost nor done twice."""

from __future__ import annotations

import pytest

from pyvmm import state
from pyvmm.testing.pci import Board
from pyvmm.virtio.input import VirtioKeyboard
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng
from tests.rig.virtio_driver import Virtio

VERSION_1, EVENT_IDX, PACKED = 1 << 32, 1 << 29, 1 << 34
FEATURES = [VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | PACKED, VERSION_1 | PACKED | EVENT_IDX]


def function() -> VirtioPci:
    return VirtioPci(VirtioRng(lambda n: b"\x5a" * n))


def restored_in(board: Board, original: VirtioPci) -> VirtioPci:
    """The same function on another board, whose RAM is that of *original*'s."""
    twin = function()
    board.host.root.add(twin, 10)
    state.load(twin, state.save(original))
    return twin


@pytest.mark.parametrize("features", FEATURES)
def test_a_kick_that_was_on_its_way_is_answered_after_the_restore(features: int) -> None:
    guest = Virtio.of(VirtioRng(lambda n: b"\x5a" * n), doorbells=False)
    (queue,) = guest.setup(features, 8)
    queue.add([(0x100000, 16, True)])
    guest.kick(0)
    assert [length for _, length in queue.used()] == [16]
    assert guest.read(0x2000, 1) == 1
    queue.add([(0x100100, 16, True)])  # and no kick: it was in an eventfd
    board = Board(doorbells=False, ram=guest.board.ram)
    twin = restored_in(board, guest.function)
    assert queue.used() == []
    board.run_later()
    assert [length for _, length in queue.used()] == [16]
    assert board.ram.read(0x100100, 16) == b"\x5a" * 16
    assert twin.isr == 1 and board.lines[2].level
    board.run_later()
    assert queue.used() == []


@pytest.mark.parametrize("features", FEATURES)
def test_an_interrupt_is_sent_once_for_one_that_may_be_lost(features: int) -> None:
    guest = Virtio.of(VirtioRng(), doorbells=False)
    guest.msix()
    guest.setup(features, 8)
    guest.write(22, 2, 0)
    guest.write(26, 2, 1)
    board = Board(doorbells=False, ram=guest.board.ram)
    restored_in(board, guest.function)
    assert board.msi.sent == []
    board.run_later()
    board.run_later()
    assert [data for _, data in board.msi.sent] == [0x41]


def test_a_function_at_rest_puts_nothing_off() -> None:
    board, other = Board(), Board()
    original = function()
    board.host.root.add(original, 10)
    restored_in(other, original)
    assert other.later == []


def test_bars_are_where_the_guest_had_put_them() -> None:
    guest = Virtio.of(VirtioRng(), doorbells=False)
    board = Board(doorbells=False)
    restored_in(board, guest.function)
    assert board.memory_bus.read(guest.bar0 + 18, 2) == 1
    assert board.memory_bus.read(guest.bar2 + 12, 4) == 1


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | PACKED])
def test_events_that_wait_for_buffers_come_after_the_restore(features: int) -> None:
    guest = Virtio.of(VirtioKeyboard("standard"), doorbells=False)
    queue, _ = guest.setup(features, 4)
    device = guest.function.device
    assert isinstance(device, VirtioKeyboard)
    queue.add([(0x100000, 8, True)])  # one where two are needed: it is held
    device.key(30, 1)
    board = Board(doorbells=False, ram=guest.board.ram)
    twin = VirtioPci(VirtioKeyboard("standard"))
    board.host.root.add(twin, 10)
    state.load(twin, state.save(guest.function))
    queue.add([(0x100100, 8, True)])
    board.run_later()
    assert len(queue.used()) == 2
    assert board.ram.read(0x100000, 8) == bytes.fromhex("01001e0001000000")
