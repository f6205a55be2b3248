"""pci-testdev: what a write to a BAR costs, as a plain exit and as an ioeventfd. Not a chip: QEMU's is the model.

BAR 0 is 4 KiB of memory, BAR 1 256 ports. Both begin with

    00 w  starts a test of that BAR: 0 no-eventfd, 1 wildcard-eventfd, 2 datamatch-eventfd; any other number: none
    01 r  width of the access that the test wants, 1      04 r  its offset in this BAR, 32 bits
    08 r  the byte to write there                         0C r  how many of its writes were seen, 32 bits
    10 r  the name of the test, zero-terminated

and read as zeroes while no test runs. A write that came by eventfd counts when the board hears of it, several at once
as one. BAR 2, where asked for, is 64-bit memory with nothing behind it, to see whether a guest places a large BAR.
Source: QEMU docs/specs/pci-testdev, hw/misc/pci-testdev.c.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final

from pyvmm.bus import NOBODY
from pyvmm.pci.bar import Bar
from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbell

MEMORY_SIZE: Final = 4096
IO_SIZE: Final = 256
DATAMATCH: Final = 0xFA
NOMATCH: Final = 0xCE
TESTS: Final = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")
WIDTH: Final = 1

_HEADER: Final = struct.Struct("<B B 2x I I I")


class IoTest:
    """One test: a byte at *offset* of its BAR."""

    STATE = ("count",)

    def __init__(self, number: int, name: str, offset: int) -> None:
        self.number = number
        self.name = name
        self.offset = offset
        self.match_data = not name.endswith("-wildcard-eventfd")
        self.data = DATAMATCH if self.match_data else NOMATCH
        self.count = 0

    def counts(self, offset: int, value: int) -> bool:
        """Whether this test is about the byte *value* at *offset*."""
        return offset == self.offset and (value == self.data or not self.match_data)

    def header(self) -> bytes:
        """What the guest reads while the test runs."""
        fields = _HEADER.pack(self.number, WIDTH, self.offset, self.data, self.count & 0xFFFFFFFF)
        return fields + self.name.encode("ascii") + b"\0"


class IoTestBar:
    """What answers in BAR 0 or BAR 1."""

    def __init__(self, device: PciTestdev, tests: list[IoTest]) -> None:
        self._device = device
        self.tests = tests

    def read(self, offset: int, size: int) -> int:
        test = self._device.current
        header = test.header() if test is not None else b""
        return int.from_bytes(header[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for at in range(offset, offset + size):
            self._write_byte(at, value & 0xFF)
            value >>= 8

    def _write_byte(self, offset: int, value: int) -> None:
        device = self._device
        if offset == 0:
            device.current = self.tests[value] if value < len(self.tests) else None
            if device.current is not None:
                device.current.count = 0
        elif (test := device.current) is not None and test.counts(offset, value):
            test.count += 1


class PciTestdev(PciDevice):
    """QEMU's pci-testdev: memory and ports with doorbells that are counted.

    *membar* is the size of BAR 2 in bytes, a power of two of at least 16; 0 leaves it out.
    """

    vendor_id, device_id, class_code = 0x1B36, 0x0005, 0x00FF00
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    STATE = ("_running", "_tests")

    def __init__(self, membar: int = 0) -> None:
        super().__init__()
        self.current: IoTest | None = None
        names = enumerate(f"{space}-{name}" for space in ("mmio", "portio") for name in TESTS)
        tests = self._tests = [
            IoTest(number, name, number + (MEMORY_SIZE if number < len(TESTS) else IO_SIZE) // 2)
            for number, name in names
        ]
        memory, io = IoTestBar(self, tests[: len(TESTS)]), IoTestBar(self, tests[len(TESTS) :])
        self._add_doorbells(self.add_memory_bar(0, MEMORY_SIZE, memory), memory.tests)
        self._add_doorbells(self.add_io_bar(1, IO_SIZE, io), io.tests)
        if membar:
            self.add_memory_bar(2, membar, NOBODY, bits64=True, prefetchable=True)

    def _add_doorbells(self, bar: Bar, tests: list[IoTest]) -> None:
        """For the tests that have one; whether they run or not, which a guest cannot tell apart."""
        _, wildcard, datamatch = tests
        # A wildcard of any width is what VMX serves without decoding the instruction; I/O tells its width anyway.
        bar.add_doorbell(wildcard.offset, Doorbell(partial(self._rung, wildcard), WIDTH if bar.io else 0))
        bar.add_doorbell(datamatch.offset, Doorbell(partial(self._rung, datamatch), WIDTH, DATAMATCH))

    def _rung(self, test: IoTest) -> None:
        if self.current is test:
            test.count += 1

    @property
    def _running(self) -> int | None:
        """The number of the current test."""
        return None if self.current is None else self.current.number

    @_running.setter
    def _running(self, number: int | None) -> None:
        self.current = None if number is None else self._tests[number]

    def reset(self) -> None:
        self.current = None
        for test in self._tests:
            test.count = 0
