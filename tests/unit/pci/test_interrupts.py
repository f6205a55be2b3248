"""INTx, MSI and MSI-X as a guest programs them."""

from __future__ import annotations

import pytest

from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board, Config, scan
from tests.rig.toys import Toy

MESSAGE = 0xFEE00000


@pytest.fixture
def board() -> Board:
    return Board()


def test_intx_follows_the_device(board: Board) -> None:
    toy = Toy()
    board.host.root.add(toy, 1)
    toy.interrupt.set_level(True)
    assert [line.level for line in board.lines] == [False, True, False, False]
    assert board.ecam(0, 1).read(6, 2) & 8
    toy.interrupt.set_level(False)
    assert not board.lines[1].level
    assert not board.ecam(0, 1).read(6, 2) & 8


def test_intx_disable_holds_the_line_and_status_still_tells(board: Board) -> None:
    toy = Toy()
    board.host.root.add(toy, 1)
    config = board.ecam(0, 1)
    config.write(4, 2, 0x400)
    toy.interrupt.set_level(True)
    assert not board.lines[1].level and config.read(6, 2) & 8
    config.write(4, 2, 0)
    assert board.lines[1].level
    config.write(4, 2, 0x400)
    assert not board.lines[1].level
    board.host.reset()
    assert not board.lines[1].level and not config.read(6, 2) & 8


@pytest.mark.parametrize(("slot", "pin"), [(slot, pin) for slot in (0, 1, 2, 3, 10, 31) for pin in (1, 2, 3, 4)])
def test_swizzle(board: Board, slot: int, pin: int) -> None:
    toy = Toy()
    toy.interrupt_pin = pin
    board.host.root.add(toy, slot)
    toy.interrupt.set_level(True)
    assert [n for n, line in enumerate(board.lines) if line.level] == [(slot + pin - 1) % 4]


def test_swizzle_twice_behind_a_port_and_a_shared_line(board: Board) -> None:
    port, behind, beside = RootPort(), Toy(), Toy()
    board.host.root.add(port, 6)
    port.child.add(behind, 0)
    board.host.root.add(beside, 2)
    behind.interrupt.set_level(True)
    beside.interrupt.set_level(True)
    assert [line.level for line in board.lines] == [False, False, True, False]
    behind.interrupt.set_level(False)
    assert board.lines[2].level
    beside.interrupt.set_level(False)
    assert not board.lines[2].level


class MsiToy(PciDevice):
    vendor_id, device_id, interrupt_pin = 0x1234, 3, 1

    def __init__(self, vectors: int, bits64: bool, maskable: bool) -> None:
        super().__init__()
        self.add_msi(vectors, bits64=bits64, maskable=maskable)


def enable_msi(config: Config, granted_log2: int = 0, data: int = 0x4040) -> int:
    """What Linux does in pci_enable_msi; returns the capability's offset."""
    at = config.find(5)
    flags = config.read(at + 2, 2)
    config.write(at + 4, 4, MESSAGE | 0x3000)
    if flags & 0x80:
        config.write(at + 8, 4, 0)
    config.write(at + (12 if flags & 0x80 else 8), 2, data)
    config.write(at + 2, 2, flags | 1 | granted_log2 << 4)
    return at


@pytest.mark.parametrize("bits64", [False, True])
@pytest.mark.parametrize("maskable", [False, True])
def test_msi(board: Board, bits64: bool, maskable: bool) -> None:
    toy = MsiToy(4, bits64, maskable)
    board.host.root.add(toy, 1)
    config = board.ecam(0, 1)
    flags = config.read(config.find(5) + 2, 2)
    assert flags == 2 << 1 | bits64 << 7 | maskable << 8
    config.write(4, 2, 4)
    enable_msi(config, 1)
    for vector in range(4):
        assert toy.send_message(vector)
    assert board.msi.sent == [(MESSAGE | 0x3000, 0x4040 | n) for n in (0, 1, 0, 1)]
    toy.interrupt.set_level(True)
    assert not any(line.level for line in board.lines), "no INTx while MSI is on"
    assert len(board.msi.sent) == 5


@pytest.mark.parametrize("bits64", [False, True])
def test_msi_mask_and_pending(board: Board, bits64: bool) -> None:
    toy = MsiToy(2, bits64, True)
    board.host.root.add(toy, 1)
    config = board.ecam(0, 1)
    config.write(4, 2, 4)
    at = enable_msi(config, 1)
    mask = at + (16 if bits64 else 12)
    config.write(mask, 4, 0xFFFFFFFF)
    assert config.read(mask, 4) == 3
    toy.send_message(1)
    toy.send_message(1)
    assert board.msi.sent == [] and config.read(mask + 4, 4) == 2
    config.write(mask, 4, 1)
    assert board.msi.sent == [(MESSAGE | 0x3000, 0x4041)] and config.read(mask + 4, 4) == 0


def test_msi_vectors_beyond_those_granted_are_closed(board: Board) -> None:
    toy = MsiToy(4, True, True)
    board.host.root.add(toy, 1)
    config = board.ecam(0, 1)
    config.write(4, 2, 4)
    at = enable_msi(config, 2)
    config.write(at + 16, 4, 0b1000)
    toy.send_message(3)
    config.write(at + 2, 2, config.read(at + 2, 2) & ~0x70)
    config.write(at + 16, 4, 0)
    assert [irq.masked for irq in board.msi.irqs] == [False, True, True, True]
    assert board.msi.sent == []


def test_messages_need_bus_mastering_and_wait_for_it(board: Board) -> None:
    toy = MsiToy(1, True, True)
    board.host.root.add(toy, 1)
    config = board.ecam(0, 1)
    enable_msi(config)
    toy.send_message(0)
    assert board.msi.sent == []
    config.write(4, 2, 4)
    assert board.msi.sent == [(MESSAGE | 0x3000, 0x4040)]


class MsixToy(PciDevice):
    vendor_id, device_id, interrupt_pin = 0x1234, 4, 1

    def __init__(self, vectors: int = 3) -> None:
        super().__init__()
        self.add_msix(vectors, 2)


class MsixGuest:
    """A guest that has mapped the table of a function in slot 1."""

    def __init__(self, board: Board, vectors: int = 3) -> None:
        self.toy = MsixToy(vectors)
        board.host.root.add(self.toy, 1)
        self.config, self.memory = board.ecam(0, 1), board.memory_bus
        self.at = self.config.find(0x11)
        self.config.write(0x18, 4, 0xC0000000)
        self.config.write(4, 2, 6)
        self.table = 0xC0000000 + (self.config.read(self.at + 4, 4) & ~7)
        self.pba = 0xC0000000 + (self.config.read(self.at + 8, 4) & ~7)

    def control(self, value: int) -> None:
        self.config.write(self.at + 2, 2, value)

    def entry(self, vector: int, data: int, masked: bool = False, address: int = MESSAGE) -> None:
        at = self.table + 16 * vector
        self.memory.write(at + 12, 4, 1)
        self.memory.write(at, 4, address & 0xFFFFFFFF)
        self.memory.write(at + 4, 4, address >> 32)
        self.memory.write(at + 8, 4, data)
        self.memory.write(at + 12, 4, int(masked))


def test_msix_table_reads_back_masked_at_first(board: Board) -> None:
    guest = MsixGuest(board)
    assert guest.config.read(guest.at + 2, 2) == 2
    assert guest.config.read(guest.at + 4, 4) & 7 == 2
    for vector in range(3):
        assert [board.memory_bus.read(guest.table + 16 * vector + i, 4) for i in (0, 4, 8, 12)] == [0, 0, 0, 1]
    guest.entry(1, 0x1234)
    assert board.memory_bus.read(guest.table + 16, 8) == MESSAGE
    assert board.memory_bus.read(guest.table + 24, 8) == 0x1234
    guest.memory.write(guest.table, 4, 0xFEE00007)
    assert guest.memory.read(guest.table, 4) == 0xFEE00004, "messages are dwords"
    board.memory_bus.write(guest.table + 24, 8, 0xFFFFFFFF_00005678)
    assert board.memory_bus.read(guest.table + 28, 4) == 1, "only the mask bit exists"
    assert board.memory_bus.read(guest.table + 24, 2) == 0x5678


def test_msix_vectors_go_out_when_on_and_not_masked(board: Board) -> None:
    guest = MsixGuest(board)
    guest.entry(0, 0x41)
    guest.entry(1, 0x42, masked=True)
    assert not guest.toy.send_message(0), "MSI-X is off"
    guest.control(0x8000)
    for vector in range(4):
        assert guest.toy.send_message(vector)
    assert board.msi.sent == [(MESSAGE, 0x41)]
    assert board.memory_bus.read(guest.pba, 8) == 0b110, "vector 2 is masked since reset, 3 does not exist"
    guest.entry(1, 0x52)
    assert board.msi.sent[1:] == [(MESSAGE, 0x52)]
    assert board.memory_bus.read(guest.pba, 4) == 0b100


def test_msix_function_mask(board: Board) -> None:
    guest = MsixGuest(board)
    guest.control(0xC000)
    guest.entry(0, 0x41)
    guest.entry(2, 0x43)
    guest.toy.send_message(0)
    guest.toy.send_message(2)
    assert board.msi.sent == [] and board.memory_bus.read(guest.pba, 8) == 0b101
    guest.control(0x8000)
    assert board.msi.sent == [(MESSAGE, 0x41), (MESSAGE, 0x43)] and board.memory_bus.read(guest.pba, 8) == 0


def test_a_bus_reset_masks_every_vector(board: Board) -> None:
    guest = MsixGuest(board)
    guest.control(0x8000)
    guest.entry(0, 0x41)
    board.host.reset()
    assert board.msi.irqs[0].masked
    guest.config.write(0x18, 4, 0xC0000000)
    guest.config.write(4, 2, 6)
    assert [guest.memory.read(guest.table + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 1]
    guest.control(0x8000)
    guest.toy.send_message(0)
    assert board.msi.sent == []


@pytest.mark.parametrize("function_first", [False, True])
def test_msix_under_both_masks_waits_for_the_last(board: Board, function_first: bool) -> None:
    guest = MsixGuest(board)
    guest.control(0xC000)
    guest.entry(0, 0x41, masked=True)
    guest.toy.send_message(0)
    for function in (function_first, not function_first):
        assert board.msi.sent == [] and board.memory_bus.read(guest.pba, 8) == 1
        if function:
            guest.control(0x8000)
        else:
            guest.memory.write(guest.table + 12, 4, 0)
    assert board.msi.sent == [(MESSAGE, 0x41)] and board.memory_bus.read(guest.pba, 8) == 0


def test_msix_off_forgets_what_was_pending(board: Board) -> None:
    guest = MsixGuest(board)
    guest.control(0xC000)
    guest.entry(0, 0x41)
    guest.toy.send_message(0)
    guest.control(0)
    guest.control(0x8000)
    assert board.msi.sent == []


def test_a_message_to_elsewhere_interrupts_nobody(board: Board) -> None:
    """It is a write as any other: into RAM, or nowhere."""
    guest = MsixGuest(board)
    guest.control(0x8000)
    guest.entry(0, 0x12345678, address=0x1000)
    guest.toy.send_message(0)
    guest.entry(1, 0x41, address=0xFED00000)
    guest.toy.send_message(1)
    assert board.msi.sent == []
    assert board.ram.read_int(0x1000, 4) == 0x12345678
    assert board.memory_bus.read(guest.pba, 8) == 0, "sent, not pending"
    guest.entry(0, 0x42)
    guest.toy.send_message(0)
    assert board.msi.sent == [(MESSAGE, 0x42)]
    guest.entry(0, 0x43, address=0x2000)
    assert board.msi.irqs[0].masked, "nor does it interrupt for somebody else who has the eventfd"


@pytest.mark.parametrize("address", [MESSAGE | 1 << 32, MESSAGE | 1 << 63, 0xFEF00000, 0xFED00000])
def test_above_and_beside_the_local_apics(board: Board, address: int) -> None:
    """All 64 bits of the address count, though KVM would look at the low half alone."""
    guest = MsixGuest(board)
    guest.control(0x8000)
    guest.entry(0, 0x41, address=address)
    guest.toy.send_message(0)
    toy = MsiToy(1, True, True)
    board.host.root.add(toy, 2)
    config = board.ecam(0, 2)
    config.write(4, 2, 4)
    at = enable_msi(config)
    config.write(at + 4, 4, address & 0xFFFFFFFF)
    config.write(at + 8, 4, address >> 32)
    toy.send_message(0)
    assert board.msi.sent == []
    assert guest.toy.send_message(0), "nor is it INTx instead"
    assert not any(line.level for line in board.lines)


def test_what_waited_goes_where_the_message_says_then(board: Board) -> None:
    guest = MsixGuest(board)
    guest.control(0x8000)
    guest.entry(0, 0x41, masked=True)
    guest.toy.send_message(0)
    guest.entry(0, 0x99, address=0x3000)
    assert board.msi.sent == [] and board.ram.read_int(0x3000, 4) == 0x99
    assert board.memory_bus.read(guest.pba, 8) == 0


def test_the_router_sees_masks_so_that_an_irqfd_can_be_held(board: Board) -> None:
    guest = MsixGuest(board)
    irq = board.msi.irqs[0]
    guest.control(0x8000)
    assert irq.masked
    guest.entry(0, 0x41)
    assert not irq.masked and irq.message == (MESSAGE, 0x41)
    board.memory_bus.write(guest.table + 12, 4, 1)
    assert irq.masked
    board.host.root.remove(guest.toy)
    assert all(irq.closed for irq in board.msi.irqs)


def test_the_pending_array_is_read_only_and_as_long_as_it_must_be(board: Board) -> None:
    guest = MsixGuest(board, vectors=130)
    guest.control(0xC000)
    guest.toy.send_message(129)
    board.memory_bus.write(guest.pba + 16, 8, 0)
    assert [board.memory_bus.read(guest.pba + 8 * i, 8) for i in range(3)] == [0, 0, 2]
    assert board.memory_bus.read(guest.pba + 24, 8) == 0


def test_intx_is_low_while_msix_is_on_and_back_after(board: Board) -> None:
    guest = MsixGuest(board)
    guest.toy.interrupt.set_level(True)
    assert board.lines[1].level
    guest.control(0x8000)
    assert not board.lines[1].level
    guest.control(0)
    assert board.lines[1].level


def test_a_port_that_may_not_master_holds_messages_of_what_is_behind(board: Board) -> None:
    port, toy = RootPort(), MsiToy(1, True, True)
    board.host.root.add(port, 4)
    port.child.add(toy, 0)
    scan(board.ecam)
    config = board.ecam(1)
    config.write(4, 2, 4)
    enable_msi(config)
    toy.send_message(0)
    assert board.msi.sent == []
    board.ecam(0, 4).write(4, 2, 4)
    assert len(board.msi.sent) == 1
