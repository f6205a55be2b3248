"""BARs, windows and bus numbers as firmware leaves them."""

from __future__ import annotations

import pytest

from pyvmm.pci.device import PciDevice
from pyvmm.pci.firmware import assign_resources
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board
from tests.rig.toys import Toy

IO, MEMORY = (0xC000, 0x10000), (0xC0000000, 0xD0000000)


def test_every_bar_answers_also_behind_a_port() -> None:
    board = Board()
    root = board.host.root
    root.add(HostBridge(), 0)
    toys = [Toy(), Toy(), Toy()]
    root.add(toys[0], 3)
    ports = [RootPort(), RootPort(), RootPort()]
    for slot, port in enumerate(ports, 4):
        root.add(port, slot)
    ports[0].child.add(toys[1], 0)
    ports[2].child.add(toys[2], 0)
    assign_resources(board.host, IO, MEMORY)
    for toy in toys:
        for bar in toy.bars.values():
            base = bar.address(toy.config)
            low, high = IO if bar.io else MEMORY
            assert low <= base and base + bar.size <= high and base % bar.size == 0
            ranges = (board.io_bus if bar.io else board.memory_bus).ranges
            assert [(start, end) for start, end, device, _ in ranges if device is bar.device] == [
                (base, base + bar.size)
            ]
    assert [(port.secondary, port.subordinate) for port in ports] == [(1, 1), (2, 2), (3, 3)]
    assert board.ecam(3).read(0, 4) == 0x11E81234
    for io, (low, high) in ((True, IO), (False, MEMORY)):
        windows = [span for port in ports for span in port.window(io, 0, 1 << 32)]
        assert [end - start for start, end in windows] == [0x1000 if io else 16 << 20] * 3, "room for what may come"
        assert all(low <= start and end <= high for start, end in windows) and len(set(windows)) == 3


def test_io_ports_that_nobody_needs_yet_are_left_out_where_there_are_not_enough() -> None:
    board = Board()
    ports, toy = [RootPort(n) for n in range(4)], Toy()
    for slot, port in enumerate(ports, 4):
        board.host.root.add(port, slot)
    board.host.root.add(toy, 9)
    assign_resources(board.host, IO, MEMORY)
    assert [port.window(True, 0, 0x10000) for port in ports] == [[], [], [], []]
    assert any(bar.io and bar.address(toy.config) for bar in toy.bars.values())


def test_buses_in_reserve() -> None:
    board = Board()
    assert board.host.last_bus == 0
    ports = [RootPort(), RootPort(), RootPort()]
    ports[1].reserved_buses = 4
    for slot, port in enumerate(ports, 4):
        board.host.root.add(port, slot)
    ports[2].child.add(Toy(), 0)
    assign_resources(board.host, IO, MEMORY)
    assert [(port.secondary, port.subordinate) for port in ports] == [(1, 1), (2, 6), (7, 7)]
    assert board.host.last_bus == 7
    assert board.ecam(7).read(0, 4) == 0x11E81234
    for nothing in (1, 2, 3, 6, 8, 255):
        assert board.ecam(nothing).read(0, 4) == 0xFFFFFFFF
    ports[1].reserved_buses = 253
    with pytest.raises(ValueError, match="the PCI bridges need 256 buses, there are 255"):
        assign_resources(board.host, IO, MEMORY)


def test_too_little_room_is_told() -> None:
    board = Board()
    board.host.root.add(Toy(), 3)
    with pytest.raises(ValueError, match=r"need 0x11000 of memory, there is 0x8000"):
        assign_resources(board.host, IO, (0xC0000000, 0xC0008000))


class Accelerator(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x0002, 0x120000

    def __init__(self, size: int, bits64: bool = True) -> None:
        super().__init__()
        self.add_memory_bar(0, size, self, bits64=bits64)


def test_what_does_not_fit_below_4_gib_goes_above() -> None:
    board = Board()
    sizes = {3: 1 << 26, 4: 1 << 28, 5: 1 << 35, 6: 1 << 20}
    functions = {slot: Accelerator(size, bits64=slot != 6) for slot, size in sizes.items()}
    for slot, function in functions.items():
        board.host.root.add(function, slot)
    assign_resources(board.host, IO, MEMORY, (1 << 38, 1 << 39))
    bases = {slot: function.bars[0].address(function.config) for slot, function in functions.items()}
    assert bases[5] == 1 << 38, "the largest first"
    assert bases[4] == (1 << 38) + (1 << 35)
    assert all(MEMORY[0] <= bases[slot] < MEMORY[1] for slot in (3, 6))
    assert board.ecam(0, 5).read(0x14, 4) == 1 << 6
    with pytest.raises(ValueError, match="of memory above 4 GiB, there is"):
        assign_resources(board.host, IO, MEMORY, (1 << 38, (1 << 38) + (1 << 34)))
