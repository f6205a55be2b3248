"""Configuration space as a guest reads, sizes and programs it, through both mechanisms."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.device import PciDevice
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import ECAM, Board, scan
from tests.rig.toys import Toy


@pytest.fixture
def board() -> Board:
    board = Board()
    board.host.root.add(HostBridge(ECAM, 256), 0)
    return board


def test_a_scan_finds_the_same_by_ports_and_by_ecam(board: Board) -> None:
    board.host.root.add(Toy(), 3)
    board.host.root.add(Toy(), 10, 0)
    board.host.root.add(Toy(), 10, 2)
    port = RootPort()
    board.host.root.add(port, 4)
    port.child.add(Toy(), 0)
    expected = {
        (0, 0, 0): (0x8086, 0x29C0),
        (0, 3, 0): (0x1234, 0x11E8),
        (0, 4, 0): (0x8086, 0x29C1),
        (0, 10, 0): (0x1234, 0x11E8),
        (0, 10, 2): (0x1234, 0x11E8),
        (1, 0, 0): (0x1234, 0x11E8),
    }
    assert scan(board.ports) == expected
    assert scan(board.ecam) == expected


@pytest.mark.parametrize("way", ["ports", "ecam"])
def test_who_reads_where_nothing_is_has_found_that_slot_of_bus_0_empty(board: Board, way: str) -> None:
    found: list[int] = []
    board.host.found_empty = found.append
    board.host.root.add(RootPort(), 4)
    board.host.root.add(Toy(), 5)
    access = getattr(board, way)
    for bus, slot, function in ((0, 4, 0), (0, 5, 0), (1, 6, 0), (0, 7, 0), (0, 5, 1), (0, 31, 7)):
        access(bus, slot, function).read(0, 4)
    access(0, 8).write(0x10, 4, 0)
    assert found == [7, 5, 31]
    board.io_bus.write(0xCF8, 4, 0x00004800)
    assert board.io_bus.read(0xCFC, 4) == 0xFFFFFFFF
    assert len(found) == 3, "without the enable bit there is no access"


def test_header_reads_right_at_every_width(board: Board) -> None:
    board.host.root.add(Toy(), 3)
    for config in (board.ports(0, 3), board.ecam(0, 3)):
        assert config.read(0, 4) == 0x11E81234
        assert config.read(2, 2) == 0x11E8
        assert [config.read(i, 1) for i in range(4)] == [0x34, 0x12, 0xE8, 0x11]
        assert config.read(8, 4) == 0x00FF0010
        assert config.read(0x2C, 4) == 0x11001AF4
        assert config.read(0x3D, 1) == 1
        assert config.read(0x0E, 1) == 0
    assert board.ecam(0, 3).read(0, 8) == 0x11E81234


def test_read_only_bits_stay(board: Board) -> None:
    board.host.root.add(Toy(), 3)
    config = board.ecam(0, 3)
    before = [config.read(i, 4) for i in range(0, 256, 4)]
    for i in (0x00, 0x08, 0x2C, 0x34, 0x40):
        config.write(i, 4, 0xFFFFFFFF)
    assert [config.read(i, 4) for i in range(0, 256, 4)] == before
    config.write(0x04, 4, 0xFFFFFFFF)
    assert config.read(0x04, 2) == 0x547
    assert config.read(0x06, 2) == 0


def test_config_address_takes_only_dwords(board: Board) -> None:
    io = board.io_bus
    io.write(0xCF8, 4, 0x80001234)
    for port in range(0xCF8, 0xCFC):
        io.write(port, 1, 0x00)
    io.write(0xCF8, 2, 0)
    assert io.read(0xCF8, 4) == 0x80001234
    assert io.read(0xCF8, 1) == 0xFF
    assert io.read(0xCFA, 2) == 0xFFFF
    io.write(0xCF8, 4, 0xFFFFFFFF)
    assert io.read(0xCF8, 4) == 0x80FFFFFC


def test_linux_takes_configuration_mechanism_one(board: Board) -> None:
    """pci_check_type1 and pci_check_type2 of arch/x86/pci/direct.c."""
    io = board.io_bus
    io.write(0xCFB, 1, 0x01)
    saved = io.read(0xCF8, 4)
    io.write(0xCF8, 4, 0x80000000)
    assert io.read(0xCF8, 4) == 0x80000000
    io.write(0xCF8, 4, saved)
    for port in (0xCFB, 0xCF8, 0xCFA):
        io.write(port, 1, 0)
    assert (io.read(0xCF8, 1), io.read(0xCFA, 1)) != (0, 0)


def test_config_data_needs_the_enable_bit(board: Board) -> None:
    board.io_bus.write(0xCF8, 4, 0)
    assert board.io_bus.read(0xCFC, 4) == 0xFFFFFFFF
    board.io_bus.write(0xCF8, 4, 0x80000000)
    assert board.io_bus.read(0xCFC, 4) == 0x29C08086
    assert board.io_bus.read(0xCFE, 2) == 0x29C0
    assert board.io_bus.read(0xCFD, 1) == 0x80


def test_reset_control_register(board: Board) -> None:
    board.io_bus.write(0xCF9, 1, 0x02)
    assert board.resets == 0
    board.io_bus.write(0xCF9, 1, 0x06)
    assert board.resets == 1
    assert board.io_bus.read(0xCF9, 1) == 0x02
    board.io_bus.write(0xCF8, 4, 0x0600)
    assert board.resets == 1, "a dword at 0xCF8 is CONFIG_ADDRESS, not RST_CNT"


def test_pciexbar_tells_where_ecam_is(board: Board) -> None:
    assert board.ecam().read(0x60, 4) == ECAM | 1
    board.ecam().write(0x60, 4, 0)
    assert board.ecam().read(0x60, 4) == ECAM | 1


def test_conventional_functions_end_at_256_bytes(board: Board) -> None:
    assert board.ecam().read(0x100, 4) == 0xFFFFFFFF
    assert board.ecam().read(0xFFC, 4) == 0xFFFFFFFF
    board.host.root.add(RootPort(), 4)
    assert board.ecam(0, 4).read(0x100, 4) == 0, "PCI Express: no extended capability"


def test_bars_are_sized(board: Board) -> None:
    board.host.root.add(Toy(), 3)
    config = board.ports(0, 3)
    assert config.size_bar(0) == (0x0, 0x1000)
    assert config.size_bar(2) == (0xC, 0x10000)
    assert config.size_bar(4) == (0x1, 32)
    assert config.size_bar(1) == config.size_bar(5) == (0, 0)
    assert [config.read(0x10 + 4 * i, 4) for i in range(6)] == [0, 0, 0xC, 0, 1, 0]


def test_function_zero_says_multi_function(board: Board) -> None:
    first, second = Toy(), Toy()
    board.host.root.add(first, 10, 0)
    assert board.ecam(0, 10).read(0x0E, 1) == 0
    board.host.root.add(second, 10, 1)
    assert board.ecam(0, 10).read(0x0E, 1) == 0x80
    board.host.reset()
    assert board.ecam(0, 10).read(0x0E, 1) == 0x80
    board.host.root.remove(second)
    assert board.ecam(0, 10).read(0x0E, 1) == 0


def test_reset_restores_the_header_and_keeps_the_interrupt_line(board: Board) -> None:
    board.host.root.add(Toy(), 3)
    config = board.ecam(0, 3)
    before = [config.read(i, 4) for i in range(0, 256, 4)]
    assert config.read(0x3C, 1) == (11, 10, 11, 10)[3]
    for i in range(0, 256, 4):
        config.write(i, 4, 0xFFFFFFFF)
    board.host.reset()
    assert [config.read(i, 4) for i in range(0, 256, 4)] == before


@pytest.mark.parametrize("place", [(3, 0), (32, 0), (-1, 0), (4, 8)])
def test_places_that_do_not_exist_or_are_taken(board: Board, place: tuple[int, int]) -> None:
    board.host.root.add(Toy(), 3)
    with pytest.raises(ValueError):
        board.host.root.add(Toy(), *place)


def test_a_function_without_a_vendor_id_is_none(board: Board) -> None:
    with pytest.raises(ValueError, match="PciDevice has no vendor_id"):
        board.host.root.add(PciDevice(), 3)
    assert 3 << 3 not in board.host.root.functions


def test_free_slot(board: Board) -> None:
    board.host.root.add(Toy(), 1)
    assert board.host.root.free_slot() == 2
    for slot in range(2, 32):
        board.host.root.add(Toy(), slot)
    with pytest.raises(ValueError, match="no free PCI slot"):
        board.host.root.free_slot()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFF), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=20))
def test_masks_hold_bit_by_bit(writes: list[tuple[int, int, int]]) -> None:
    config = ConfigSpace()
    config.define(0x10, 4, 0xA5A5A5A5, 0x0FF0FF00, 0xF0000000)
    model = 0xA5A5A5A5
    for offset, size, value in writes:
        config.write(offset, size, value & ((1 << 8 * size) - 1))
        for i in range(size):
            if 0x10 <= offset + i < 0x14:
                lane = 8 * (offset + i - 0x10)
                byte = (value >> 8 * i & 0xFF) << lane
                model = (model & ~(0x0FF0FF00 & 0xFF << lane)) | byte & 0x0FF0FF00
                model &= ~(byte & 0xF0000000)
    assert config.get(0x10, 4) == model
    assert config.data[:0x10] == bytes(0x10) and config.data[0x14:] == bytes(256 - 0x14)
