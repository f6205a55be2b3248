"""pc-testdev, which programs that test KVM poke at. Not a chip: QEMU's is the model, its addresses are fixed.

    ports 00E0-00E3   four bytes that are kept, at any width
    port  00E4        4 bytes written: the page with that physical address leaves KVM's second-level tables
    ports 00E8-00EB   the bytes of 00E0-00E3 again; QEMU splits a wide access to these, and not to those
    ports 2000-2017   a byte written to 2000+n: not 0 raises ISA IRQ n, 0 lowers it; there are 16
    at FF000000       64 KiB that are kept, by MMIO

Source: QEMU hw/misc/pc-testdev.c. Lines and pages are the board's, and are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

from pyvmm.bus import ALL_ONES
from pyvmm.irq import Irq

TESTDEV_DATA: Final = 0xE0
TESTDEV_FLUSH: Final = 0xE4
TESTDEV_DATA_BYTES: Final = 0xE8
TESTDEV_IRQS: Final = 0x2000
TESTDEV_IRQ_PORTS: Final = 24
TESTDEV_MEMORY: Final = 0xFF000000
TESTDEV_MEMORY_SIZE: Final = 0x10000


class IsaLines(Protocol):
    """The board's ISA IRQs, from 0 up."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Irq: ...

    def __iter__(self) -> Iterator[Irq]: ...


class FlushPage(Protocol):
    """Takes the page at a physical address, 32 bits, out of KVM's second-level tables."""

    def __call__(self, gpa: int, /) -> None: ...


class PcTestdev:
    """QEMU's pc-testdev, at ports 0xe0 and 0x2000 and at 0xff000000.

    *ports* and *memory* say where it wants to be: (first address, length, who answers there)."""

    STATE = ("_data", "_store")

    def __init__(self, lines: IsaLines, flush_page: FlushPage) -> None:
        data = self._data = Latch()
        self._store = Store(TESTDEV_MEMORY_SIZE)
        self._lines = lines
        self.ports = (
            (TESTDEV_DATA, 4, data),
            (TESTDEV_FLUSH, 4, PageFlush(flush_page)),
            (TESTDEV_DATA_BYTES, 4, data),
            (TESTDEV_IRQS, TESTDEV_IRQ_PORTS, IrqLines(lines)),
        )
        self.memory = ((TESTDEV_MEMORY, TESTDEV_MEMORY_SIZE, self._store),)

    def reset(self) -> None:
        """Lines down, the four bytes zero; the 64 KiB stay."""
        self._data.write(0, 4, 0)
        for line in self._lines:
            line.set_level(False)


class Store:
    """*size* bytes that are kept."""

    STATE: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        end = min(offset + size, len(self.bytes))
        self.bytes[offset:end] = value.to_bytes(size, "little")[: end - offset]


class Latch(Store):
    """The four bytes behind two addresses."""

    STATE = ()

    def __init__(self) -> None:
        super().__init__(4)


class PageFlush:
    """The register that makes KVM forget a page."""

    def __init__(self, flush_page: FlushPage) -> None:
        self._flush_page = flush_page

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self._flush_page(value)


class IrqLines:
    """A port a line."""

    def __init__(self, lines: IsaLines) -> None:
        self._lines = lines

    def read(self, offset: int, size: int) -> int:
        return 0 if size == 1 else ALL_ONES[size]

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1 and offset < len(self._lines):
            self._lines[offset].set_level(value != 0)
