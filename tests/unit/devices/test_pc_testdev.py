"""pc-testdev, put on buses as the board puts it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.devices.pc_testdev import PcTestdev
from pyvmm.irq import FakeIrq


class Rig:
    def __init__(self) -> None:
        self.pio, self.mmio = Bus("PIO", 1 << 16), Bus("MMIO", 1 << 52)
        self.lines = [FakeIrq() for _ in range(16)]
        self.flushed: list[int] = []
        self.device = device = PcTestdev(self.lines, self.flushed.append)
        for bus, places in ((self.pio, device.ports), (self.mmio, device.memory)):
            for start, length, answering in places:
                bus.map(start, length, answering)


def test_data_at_every_width() -> None:
    rig = Rig()
    rig.pio.write(0xE0, 4, 0x44332211)
    for base in (0xE0, 0xE8):
        assert rig.pio.read(base, 4) == 0x44332211
        assert [rig.pio.read(base + n, 1) for n in range(4)] == [0x11, 0x22, 0x33, 0x44]
        assert rig.pio.read(base + 1, 2) == 0x3322
    rig.pio.write(0xE9, 2, 0x6655)
    assert rig.pio.read(0xE0, 4) == 0x44665511


def test_flush() -> None:
    rig = Rig()
    rig.pio.write(0xE4, 4, 0x12345678)
    rig.pio.write(0xE4, 2, 1)
    rig.pio.write(0xE5, 1, 1)
    assert rig.flushed == [0x12345678] and rig.pio.read(0xE4, 4) == 0


def test_lines() -> None:
    rig = Rig()
    for n in range(24):
        rig.pio.write(0x2000 + n, 1, 0x80)
        assert rig.pio.read(0x2000 + n, 1) == 0
    assert [line.level for line in rig.lines] == [True] * 16
    rig.pio.write(0x200E, 1, 0)
    rig.pio.write(0x200E, 4, 0xFFFFFFFF)
    assert [n for n, line in enumerate(rig.lines) if not line.level] == [14]


def test_reset() -> None:
    rig = Rig()
    rig.pio.write(0xE0, 4, 0xFFFFFFFF)
    rig.pio.write(0x200E, 1, 1)
    rig.mmio.write(0xFF000000, 1, 1)
    rig.device.reset()
    assert (rig.pio.read(0xE0, 4), rig.lines[14].level, rig.mmio.read(0xFF000000, 1)) == (0, False, 1)


def test_memory() -> None:
    rig = Rig()
    rig.mmio.write(0xFF000000, 8, 0x8877665544332211)
    rig.mmio.write(0xFF00FFF8, 8, 0x0102030405060708)
    assert rig.mmio.read(0xFF000002, 4) == 0x66554433
    assert rig.mmio.read(0xFF00FFFE, 2) == 0x0102
    assert rig.mmio.read(0xFF00FFFC, 8) == 0xFFFFFFFF01020304, "behind it is nothing"


@given(
    st.lists(
        st.tuples(
            st.sampled_from((0xE0, 0xE4, 0xE8, 0x2000, 0x2010, 0xFF000000, 0xFF00FFF8)),
            st.integers(-3, 8),
            st.sampled_from((1, 2, 4, 8)),
            st.integers(0, 0xFFFFFFFFFFFFFFFF),
        )
    )
)
def test_any_access(accesses: list[tuple[int, int, int, int]]) -> None:
    rig = Rig()
    for base, offset, size, value in accesses:
        bus = rig.mmio if base > 0xFFFF else rig.pio
        bus.write(base + offset, size, value & ((1 << 8 * size) - 1))
        assert 0 <= bus.read(base + offset, size) < 1 << 8 * size
