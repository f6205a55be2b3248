"""The driver's side of an ATA channel, for unit tests, and a medium that answers when it is told to."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from pyvmm.devices.ata import Done
from pyvmm.devices.ata_channel import AtaChannel

SECTOR = 512
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01
READY = DRDY | DSC
ABRT, IDNF, UNC = 0x04, 0x10, 0x40
NIEN, SRST, HOB = 0x02, 0x04, 0x80


class FakeMedium:
    """Sectors in RAM. With *slow* a request waits for answer()."""

    def __init__(self, sectors: int, slow: bool = False, readonly: bool = False) -> None:
        self.sectors, self.readonly, self.slow = sectors, readonly, slow
        self.data = bytearray(b"".join(bytes([n & 0xFF]) * SECTOR for n in range(sectors)))
        self.fails = False
        self.log: list[tuple[str, int, int, bool]] = []
        """(what, sector, count, through) of each request."""
        self.under_way: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return bool(self.under_way)

    def _do(self, work: Callable[[], None], done: Done) -> None:
        def run() -> None:
            if not self.fails:
                work()
            done(not self.fails)

        if self.slow:
            self.under_way.append(run)
        else:
            run()

    def answer(self) -> None:
        """The oldest request is done."""
        self.under_way.pop(0)()

    def read(self, sector: int, views: Sequence[memoryview], done: Done) -> None:
        size = sum(map(len, views))
        assert size and size % SECTOR == 0 and sector >= 0 and sector + size // SECTOR <= self.sectors
        self.log.append(("read", sector, size // SECTOR, False))

        def work() -> None:
            at = sector * SECTOR
            for view in views:
                view[:] = bytes(self.data[at : at + len(view)]).ljust(len(view), b"\0")
                at += len(view)

        self._do(work, done)

    def write(self, sector: int, views: Sequence[memoryview], through: bool, done: Done) -> None:
        data = b"".join(views)
        assert data and len(data) % SECTOR == 0 and sector >= 0 and sector + len(data) // SECTOR <= self.sectors
        assert not self.readonly
        self.log.append(("write", sector, len(data) // SECTOR, through))

        def work() -> None:
            self.data[sector * SECTOR : sector * SECTOR + len(data)] = data

        self._do(work, done)

    def flush(self, done: Done) -> None:
        self.log.append(("flush", 0, 0, False))
        self._do(lambda: None, done)

    def give_up(self) -> None: ...


class AtaDriver:
    """What a driver does at the ports of *channel*; commands are polled."""

    def __init__(self, channel: AtaChannel) -> None:
        self.channel = channel

    def inb(self, register: int) -> int:
        return self.channel.command_block.read(register, 1)

    def outb(self, register: int, value: int) -> None:
        self.channel.command_block.write(register, 1, value)

    @property
    def status(self) -> int:
        """By the alternate status, which leaves the interrupt."""
        return self.channel.control_block.read(0, 1)

    def control(self, value: int) -> None:
        self.channel.control_block.write(0, 1, value)

    def reset(self) -> None:
        self.control(SRST)
        self.control(0)

    def command(self, code: int, lba: int = 0, count: int = 1, *, device: int = 0xE0, feature: int = 0) -> int:
        """Give a command with an LBA of 28 bits; the status."""
        self.outb(6, device | lba >> 24 & 0x0F)
        for register, value in ((1, feature), (2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.outb(register, value & 0xFF)
        self.outb(7, code)
        return self.status

    def command_ext(self, code: int, lba: int, count: int, *, device: int = 0xE0) -> int:
        """With an LBA of 48 bits."""
        self.outb(6, device)
        for register, high, low in ((2, count >> 8, count), (3, lba >> 24, lba), (4, lba >> 32, lba >> 8),
                                    (5, lba >> 40, lba >> 16)):  # fmt: skip
            self.outb(register, high & 0xFF)
            self.outb(register, low & 0xFF)
        self.outb(7, code)
        return self.status

    def read_data(self, size: int = SECTOR) -> bytes:
        return b"".join(
            (self.channel.command_block.read(0, 2) & 0xFFFF).to_bytes(2, "little") for _ in range(size // 2)
        )

    def write_data(self, data: bytes) -> None:
        for (word,) in struct.iter_unpack("<H", data):
            self.channel.command_block.write(0, 2, word)

    def identify(self) -> tuple[int, ...]:
        assert self.command(0xEC) & (BSY | DRQ | ERR) == DRQ
        return struct.unpack("<256H", self.read_data())

    def sector(self) -> int:
        """What the registers name."""
        return self.inb(3) | self.inb(4) << 8 | self.inb(5) << 16 | (self.inb(6) & 0x0F) << 24
