"""pci-testdev, driven as kvm-unit-tests' vmexit drives it, and by its doorbells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.pci.testdev import PciTestdev
from pyvmm.testing.pci import Board

MEMORY, IO = 0xC0000000, 0xC000


def placed(doorbells: bool = True) -> Board:
    board = Board(doorbells)
    board.host.root.add(PciTestdev(), 3)
    config = board.ecam(0, 3)
    assert config.read(0, 4) == 0x00051B36 and config.read(8, 4) == 0x00FF0000 and config.read(0x3D, 1) == 0
    assert config.size_bar(0) == (0, 4096) and config.size_bar(1) == (1, 256) and config.size_bar(2) == (0, 0)
    config.write(0x10, 4, MEMORY)
    config.write(0x14, 4, IO)
    config.write(4, 2, 3)
    return board


def name(bus: Bus, base: int) -> str:
    text = bytes(bus.read(base + 16 + n, 1) for n in range(40))
    return text.partition(b"\0")[0].decode()


@pytest.mark.parametrize("doorbells", [True, False])
def test_all_tests_of_both_bars(doorbells: bool) -> None:
    board = placed(doorbells)
    seen = []
    for bus, base in ((board.memory_bus, MEMORY), (board.io_bus, IO)):
        for number in range(256):
            bus.write(base, 1, number)
            if bus.read(base + 1, 1) not in (1, 2, 4):
                break
            seen.append((name(bus, base), offset := bus.read(base + 4, 4), data := bus.read(base + 8, 4)))
            taken = [board.doorbells.ring(bus, base + offset, 1, value) for value in (data, data ^ 0xFF)]
            assert taken == [doorbells and number != 0, doorbells and number == 1], "before it is an exit"
            before = bus.read(base + 12, 4)
            bus.write(base + offset, 1, data)
            bus.write(base + offset, 1, data ^ 0xFF)
            assert bus.read(base + 12, 4) - before == (2 if number == 1 else 1)
            bus.write(base, 1, number)
            assert bus.read(base + 12, 4) == 0, "each start counts anew"
        assert bus.read(base + 4, 4) == 0, "no test runs"
    assert seen == [
        ("mmio-no-eventfd", 2048, 0xFA),
        ("mmio-wildcard-eventfd", 2049, 0xCE),
        ("mmio-datamatch-eventfd", 2050, 0xFA),
        ("portio-no-eventfd", 131, 0xFA),
        ("portio-wildcard-eventfd", 132, 0xCE),
        ("portio-datamatch-eventfd", 133, 0xFA),
    ]


def test_a_test_that_does_not_run_counts_nothing() -> None:
    board = placed()
    bus = board.memory_bus
    board.doorbells.ring(bus, MEMORY + 2049, 1, 0xCE)
    bus.write(MEMORY + 2048, 1, 0xFA)
    bus.write(MEMORY, 1, 0)
    assert bus.read(MEMORY + 12, 4) == 0
    board.doorbells.ring(bus, MEMORY + 2049, 1, 0xCE)
    bus.write(MEMORY + 2049, 1, 0xCE)
    assert bus.read(MEMORY + 12, 4) == 0
    bus.write(MEMORY + 2047, 4, 0xFAFA)
    assert bus.read(MEMORY + 12, 4) == 1, "a wide write is bytes"
    board.host.root.functions[3 << 3].reset_function()
    assert bus.read(MEMORY, 4) == 0xFFFFFFFF


@pytest.mark.parametrize("size", [16, 1 << 20, 1 << 36])
def test_a_large_bar_with_nothing_behind_it(size: int) -> None:
    board = Board()
    board.host.root.add(PciTestdev(size), 3)
    config = board.ecam(0, 3)
    config.write(0x18, 4, 0xFFFFFFFF)
    config.write(0x1C, 4, 0xFFFFFFFF)
    value = config.read(0x18, 4) | config.read(0x1C, 4) << 32
    assert value & 0xF == 0xC and (1 << 64) - (value & ~0xF) == size
    config.write(0x18, 4, 0)
    config.write(0x1C, 4, 0x100)
    config.write(4, 2, 2)
    assert board.memory_bus.read(1 << 40, 4) == 0xFFFFFFFF


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.booleans(),
            st.integers(0, 40) | st.integers(0, 255) | st.integers(2040, 2060),
            st.sampled_from((1, 2, 4, 8)),
            st.integers(0, 4) | st.integers(0, (1 << 64) - 1),
        )
    )
)
def test_any_access(accesses: list[tuple[bool, bool, int, int, int]]) -> None:
    board = placed()
    for io, is_write, offset, size, value in accesses:
        bus, address = (board.io_bus, IO + offset % 256) if io else (board.memory_bus, MEMORY + offset)
        size = min(size, 4) if io else size
        if is_write:
            bus.write(address, size, value & ((1 << 8 * size) - 1))
        else:
            assert 0 <= bus.read(address, size) < 1 << 8 * size
