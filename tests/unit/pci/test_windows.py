"""Memory of the host under a BAR: it follows the BAR, is hidden with it, and the rest traps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.memory import Region
from pyvmm.pci.decoder import AddressDecoder
from pyvmm.pci.device import PciDevice
from pyvmm.pci.window import FakeWindow, FakeWindows
from pyvmm.testing.pci import Board
from tests.rig.toys import Registers

PAGE = 0x1000


class Backed(PciDevice):
    vendor_id = 0x1234

    def __init__(self) -> None:
        super().__init__()
        self.memory = memoryview(bytearray(0x2000))
        self.add_memory_bar(0, 0x4000, self).back(0x1000, self.memory)


def test_what_is_backed_is_reached_and_the_rest_traps() -> None:
    board, device = Board(), Backed()
    board.host.root.add(device, 3)
    config = board.ecam(0, 3)
    config.write(0x10, 4, 0xC0000000)
    assert board.windows.at == {}
    config.write(4, 2, 2)
    assert list(board.windows.at) == [0xC0001000]
    board.windows.at[0xC0001000][5] = 7
    assert device.memory[5] == 7
    config.write(0x10, 4, 0xD0000000)
    assert list(board.windows.at) == [0xD0001000]
    board.host.root.remove(device)
    assert board.windows.at == {}


def test_what_is_no_whole_pages_of_memory_is_refused() -> None:
    device = PciDevice()
    bar, io = device.add_memory_bar(0, 0x2000, device), device.add_io_bar(1, 0x100, device)
    for target, offset, size in (
        (bar, 0x800, PAGE),
        (bar, 0, 0x800),
        (bar, PAGE, 2 * PAGE),
        (bar, 0, 0),
        (io, 0, PAGE),
    ):
        with pytest.raises(ValueError, match="has no whole pages of memory at"):
            target.back(offset, memoryview(bytearray(size)))


def test_where_no_window_opens_accesses_trap() -> None:
    class Full(FakeWindows):
        def open(self, address: int, buffer: memoryview) -> FakeWindow | None:  # type: ignore[override]
            return None

    bus = Bus("mem", 1 << 40)
    decoder, registers = AddressDecoder(bus, 1 << 40, windows=Full()), Registers()
    claim = decoder.claim(registers)
    claim.back(0, memoryview(bytearray(PAGE)))
    claim.place(0x10000, [(0x10000, 0x11000)])
    decoder.apply()
    bus.write(0x10010, 4, 5)
    assert registers.data == {0x10: 5}
    claim.release()


PLACES = st.tuples(st.integers(0, 2), st.integers(0, 24), st.integers(0, 7), st.integers(0, 7))


@given(st.lists(st.one_of(PLACES, st.none()), max_size=20))
def test_windows_are_what_is_visible_of_what_is_backed(steps: list[tuple[int, int, int, int] | None]) -> None:
    """Three claims of eight half pages over each other and over RAM that comes and goes."""
    bus, windows = Bus("mem", 1 << 30), FakeWindows()
    decoder = AddressDecoder(bus, 1 << 30, windows=windows)
    ram, has_ram = Region(0x5000, memoryview(bytearray(2 * PAGE))), False
    buffers = [memoryview(bytearray(2 * PAGE)) for _ in range(3)]
    claims = [decoder.claim(Registers()) for _ in range(3)]
    for claim, buffer in zip(claims, buffers, strict=True):
        claim.back(PAGE, buffer)
    for step in steps:
        if step is None:
            (decoder.removed if has_ram else decoder.added)(ram)
            has_ram = not has_ram
        else:
            number, base, first, last = step
            half = PAGE // 2
            claims[number].place(base * half, [(base * half + first * half, base * half + (last + 1) * half)])
            decoder.apply()
        expected = set()
        for claim, buffer in zip(claims, buffers, strict=True):
            for page in range(2):
                at = claim.base + PAGE * (1 + page)
                if at % PAGE == 0 and any(low <= at and at + PAGE <= high for low, high in claim.visible):
                    expected.add((at, id(buffer), page))
        found = set()
        for start, view in windows.at.items():
            for offset in range(0, len(view), PAGE):
                view[offset] ^= 1
                for buffer in buffers:
                    found |= {(start + offset, id(buffer), page) for page in range(2) if buffer[page * PAGE]}
                view[offset] ^= 1
        assert found == expected
    for claim in claims:
        claim.release()
    assert windows.at == {}
