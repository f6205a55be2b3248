"""A function takes the place of another: its driver finds registers, messages and rings as they were, or all stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY
from pyvmm.pci.replacing import difference, replace
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import VirtioPci

BAR0 = 0xC0000000
MESSAGE = 0xFEE01000


class Counter(PciDevice):
    """Adds what is written, interrupts, and gives the sum back."""

    vendor_id, device_id, interrupt_pin = 0x1234, 5, 1
    STATE: ClassVar[tuple[str, ...]] = ("total",)

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.closed = 0
        self.add_memory_bar(0, 0x1000, self)
        self.add_msi()

    def reset(self) -> None:
        self.total = 0

    def read(self, offset: int, size: int) -> int:
        return self.total

    def write(self, offset: int, size: int, value: int) -> None:
        self.total = self.total + value & 0xFFFF
        self.interrupt.set_level(bool(self.total))

    def close(self) -> None:
        self.closed += 1


class Doubling(Counter):
    """The next version."""

    STATE = ("wrong",)

    def __init__(self) -> None:
        super().__init__()
        self.wrong = 0

    def read(self, offset: int, size: int) -> int:
        return 2 * self.total


def driven(msi: bool = True) -> tuple[Board, Counter]:
    """One whose driver is at work."""
    board, device = Board(), Counter()
    board.host.root.add(device, 3)
    config = board.ports(slot=3)
    config.write(0x10, 4, BAR0)
    config.write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
    if msi:
        at = config.find(0x05)
        config.write(at + 4, 4, MESSAGE)
        config.write(at + 8, 4, 0)
        config.write(at + 12, 2, 0x41)
        config.write(at + 2, 2, 1)
    board.memory_bus.write(BAR0, 4, 20)
    return board, device


def test_the_driver_goes_on() -> None:
    board, old = driven()
    messages = len(board.msi.sent)
    new = Doubling()
    assert replace(board.host.root, old, new) == ["wrong"], "what the old one did not have stays as it was made"
    assert board.host.root.functions[3 << 3] is new and old.slot is None
    assert board.memory_bus.read(BAR0, 4) == 40
    board.memory_bus.write(BAR0, 4, 0xFFEC)  # 0: the level goes down
    board.memory_bus.write(BAR0, 4, 1)
    assert board.msi.sent[messages:] == [(MESSAGE, 0x41)]
    assert [line.level for line in board.lines] == [False] * 4


def test_a_level_interrupt_stays_up() -> None:
    board, old = driven(msi=False)
    levels = [line.level for line in board.lines]
    assert any(levels)
    new = Counter()
    assert replace(board.host.root, old, new) == []
    assert [line.level for line in board.lines] == levels
    old.set_intx(False)  # a timer that it forgot
    assert [line.level for line in board.lines] == levels
    new.set_intx(False)
    assert not any(line.level for line in board.lines)


class Bigger(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.bars.clear()
        self.add_memory_bar(0, 0x2000, self)


class WithMsix(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.add_msix(2, 1)


class WithCapability(Counter):
    def __init__(self) -> None:
        super().__init__()
        self.add_capability(0x09, b"\x08\0\0\0\0\0")


class Other(Counter):
    device_id = 6


class NoPin(Counter):
    interrupt_pin = 0


class Other64(Counter):
    def __init__(self) -> None:
        PciDevice.__init__(self)
        self.total = 0
        self.add_memory_bar(0, 0x1000, self, bits64=True)
        self.add_msi()


class MoreVectors(Counter):
    def __init__(self) -> None:
        PciDevice.__init__(self)
        self.total = 0
        self.add_memory_bar(0, 0x1000, self)
        self.add_msi(4)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Bigger, "BAR 0 is 0x2000 bytes of memory, it was 0x1000 bytes of memory"),
        (Other64, "BAR 0 is 0x1000 bytes of 64-bit memory, it was 0x1000 bytes of memory"),
        (WithMsix, "BAR 1 is 0x1000 bytes of memory, it was none"),
        (WithCapability, "capability 0x05 differs"),  # which leads to another one now
        (MoreVectors, "capability 0x05 differs"),
        (Other, "device_id differs"),
        (NoPin, "interrupt_pin differs"),
    ],
)
def test_a_driver_would_find_another_device(kind: Callable[[], PciDevice], what: str) -> None:
    board, old = driven()
    with pytest.raises(ValueError, match=f"^{what}$"):
        replace(board.host.root, old, kind())
    assert board.memory_bus.read(BAR0, 4) == 20 and not old.closed


class Raises(Counter):
    """In the call that is named."""

    STATE = ()

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def attached(self) -> None:
        self._raise("attached")

    def restored(self) -> None:
        super().restored()
        self._raise("restored")

    def reset(self) -> None:
        super().reset()
        if self.slot is not None:
            self._raise("reset")

    def _raise(self, here: str) -> None:
        if here == self.where or (self.where == "both" and here in ("restored", "reset")):
            raise RuntimeError(here)


@pytest.mark.parametrize("where", ["attached", "restored", "both"])
def test_one_that_raises_leaves_the_old_one(where: str) -> None:
    board, old = driven()
    with pytest.raises(RuntimeError, match="attached" if where == "attached" else "restored"):
        replace(board.host.root, old, Raises(where))
    assert board.host.root.functions[3 << 3] is old
    assert board.memory_bus.read(BAR0, 4) == 20
    messages = len(board.msi.sent)
    board.memory_bus.write(BAR0, 4, 0xFFEC)
    board.memory_bus.write(BAR0, 4, 1)
    assert board.msi.sent[messages:] == [(MESSAGE, 0x41)]


def test_one_whose_reset_raises_can_be_replaced() -> None:
    board = Board()
    old = Raises("reset")
    board.host.root.add(old, 3)
    board.ports(slot=3).write(0x10, 4, BAR0)
    board.ports(slot=3).write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY)
    old.total = 7
    assert replace(board.host.root, old, Counter()) == []
    assert board.memory_bus.read(BAR0, 4) == 7


def test_behind_a_port_it_is_an_endpoint_as_the_old_one() -> None:
    board, port, old = Board(), RootPort(0), Counter()
    board.host.root.add(port, 1)
    port.child.add(old, 0)
    assert difference(old, Counter()) is not None, "without the capability that the bus adds"
    assert board.host.bus_of(old) is port.child
    new = Counter()
    assert replace(port.child, old, new) == []
    assert board.host.bus_of(new) is port.child and board.host.bus_of(old) is None


actions = st.lists(
    st.one_of(
        st.tuples(st.just("config"), st.integers(0, 0xFF), st.integers(0, (1 << 32) - 1)),
        st.tuples(st.just("write"), st.integers(0, 0xFFF), st.integers(0, (1 << 32) - 1)),
    ),
    max_size=30,
)


@given(actions, actions)
def test_one_of_the_same_code_is_a_twin(before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]) -> None:
    """Whatever a guest has done: all that is saved is the same, and so is all that it finds from then on."""
    boards = []
    for replaced in (False, True):
        board, device = driven()
        act(board, before)
        if replaced:
            messages = len(board.msi.sent)
            new = Counter()
            assert replace(board.host.root, device, new) == []
            assert len(board.msi.sent) == messages, "no interrupt of its own"
            device = new
        found = act(board, after)
        boards.append((state.save(device), found, [line.level for line in board.lines], board.msi.sent))
    assert boards[0] == boards[1]


def act(board: Board, actions: list[tuple[str, int, int]]) -> list[int]:
    config, found = board.ports(slot=3), []
    for kind, offset, value in actions:
        if kind == "config":
            config.write(offset, 4 if offset % 4 == 0 else 1, value & (0xFFFFFFFF if offset % 4 == 0 else 0xFF))
        else:
            board.memory_bus.write(BAR0 + offset, 4, value)
        found += [config.read(offset & 0xFC, 4), board.memory_bus.read(BAR0, 4)]
    return found


class Echo(VirtioDevice):
    device_id = 0x3F
    queue_sizes: ClassVar[tuple[int, ...]] = (8,)


class Wider(Echo):
    queue_sizes = (8, 8)


class Longer(Echo):
    queue_sizes = (16,)


class Featured(Echo):
    features = Echo.features | 1


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Wider, "queue_sizes is"),
        (Longer, r"queue_sizes is \(16,\), it was \(8,\)"),
        (Featured, "features is 0x"),
    ],
)
def test_a_virtio_driver_would_find_another_device(kind: Callable[[], Echo], what: str) -> None:
    board = Board()
    old = VirtioPci(Echo())
    board.host.root.add(old, 3)
    with pytest.raises(ValueError, match=what):
        replace(board.host.root, old, VirtioPci(kind()))
    with pytest.raises(ValueError, match="BAR 0 is"):
        replace(board.host.root, old, Counter())
    assert board.host.root.functions[3 << 3] is old
