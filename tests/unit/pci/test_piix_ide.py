"""The PIIX IDE function: its ports, its bus master against a table in RAM, and disks of files behind it."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.backends.disks import Disks
from pyvmm.errors import UserError
from pyvmm.irq import FakeIrq
from pyvmm.memory import GuestMemory
from pyvmm.pci.ata_disk import AtaDisk
from pyvmm.pci.piix_ide import PiixIde
from pyvmm.pci.regs import PCI_COMMAND
from pyvmm.testing.pci import Board
from tests.rig.ata_driver import BSY, DRQ, ERR, READY, SECTOR, AtaDriver

SECTORS = 4096
TABLE, DATA = 0x1000, 0x10000
IO = 0xC000
START, TO_MEMORY = 1, 8
ACTIVE, ERROR, INTERRUPT = 1, 2, 4
OPS = int(os.environ.get("PYVMM_SOAK_OPS", "19200"))
"""Operations of random guests; scripts/soak legacy has more."""


class Ide(AtaDriver):
    """The function on a board, disks of files behind it, and the driver of its primary channel."""

    def __init__(self, *paths: Path, **words: Any) -> None:
        self.posted: list[object] = []
        self.disks = Disks(self.posted.append)
        self.lines = [FakeIrq(), FakeIrq()]
        self.ide = PiixIde(self.lines)
        for path in paths:
            self.ide.attach(AtaDisk(path, self.disks, **words))
        self.board = Board(ram=GuestMemory.of_size(1 << 22))
        self.board.host.root.add(self.ide, 1)
        self.ide.config_write(0x20, 4, IO)
        self.ide.config_write(PCI_COMMAND, 2, 5)
        super().__init__(self.ide.channels[0])

    @property
    def memory(self) -> GuestMemory:
        return self.board.ram

    def rest(self) -> None:
        """Let the threads end what they have."""
        self.disks.drain()

    def io(self, port: int, size: int, value: int | None = None) -> int:
        if value is None:
            return self.board.io_bus.read(port, size)
        self.board.io_bus.write(port, size, value)
        return 0

    def table(self, *regions: tuple[int, int], end: bool = True) -> None:
        for n, (address, size) in enumerate(regions):
            last = end and n == len(regions) - 1
            self.memory.write(TABLE + 8 * n, struct.pack("<II", address, size & 0xFFFF | (0x80000000 if last else 0)))

    def start(self, direction: int = TO_MEMORY) -> None:
        self.io(IO + 4, 4, TABLE)
        self.io(IO, 1, direction)
        self.io(IO + 2, 1, ERROR | INTERRUPT)
        self.io(IO, 1, direction | START)

    @property
    def bus_master(self) -> int:
        return self.io(IO + 2, 1)

    def close(self) -> None:
        self.disks.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(b"".join(struct.pack("<Q", n) * (SECTOR // 8) for n in range(SECTORS)))
    return file


@pytest.fixture
def ide(path: Path) -> Iterator[Ide]:
    ide = Ide(path)
    yield ide
    ide.close()


def of_sectors(first: int, count: int) -> bytes:
    return b"".join(struct.pack("<Q", n) * (SECTOR // 8) for n in range(first, first + count))


def test_identity(ide: Ide) -> None:
    config = ide.ide.config
    assert [config.read(at, 2) for at in (0, 2)] == [0x8086, 0x7010]
    assert config.read(8, 4) >> 8 == 0x010180
    assert config.read(0x40, 4) == 0x80008000, "both channels answer, as a BIOS leaves it"
    assert config.read(0x3D, 1) == 0


def test_ports_answer_as_the_command_register_and_idetim_say(ide: Ide) -> None:
    assert (ide.io(0x1F7, 1), ide.io(0x3F6, 1)) == (READY, READY)
    assert (ide.io(0x177, 1), ide.io(0x376, 1)) == (0x7F, 0x7F), "an empty cable"
    assert ide.io(0x3F7, 1) == 0xFF
    ide.ide.config_write(0x41, 1, 0)
    assert (ide.io(0x1F7, 1), ide.io(0x3F6, 1), ide.io(0x177, 1)) == (0xFF, 0xFF, 0x7F)
    ide.ide.config_write(0x40, 4, 0x0000FFFF)
    assert (ide.io(0x1F7, 1), ide.io(0x177, 1)) == (READY, 0xFF)
    ide.ide.config_write(PCI_COMMAND, 2, 4)
    assert ide.io(0x1F7, 1) == 0xFF and ide.bus_master == 0xFF
    ide.board.host.reset()
    ide.ide.config_write(PCI_COMMAND, 2, 1)
    assert ide.io(0x1F7, 1) == READY and ide.ide.config.read(0x40, 4) == 0x80008000
    ide.board.host.root.remove(ide.ide)
    assert ide.io(0x1F7, 1) == 0xFF


def test_pio_of_a_file(ide: Ide, path: Path) -> None:
    ide.command(0x20, 7, 2)
    assert ide.status == BSY
    ide.rest()
    assert ide.status == READY | DRQ and ide.lines[0].level
    assert ide.read_data(2 * SECTOR) == of_sectors(7, 2)
    ide.command(0x30, 9, 1)
    ide.write_data(b"!" * SECTOR)
    ide.rest()
    assert ide.status == READY and path.read_bytes()[9 * SECTOR : 10 * SECTOR] == b"!" * SECTOR
    ide.command(0xE7)
    ide.rest()
    assert ide.status == READY


@pytest.mark.parametrize("first", ["command", "bus master"])
@pytest.mark.parametrize("ext", [False, True])
def test_dma_into_memory(ide: Ide, first: str, ext: bool) -> None:
    ide.table((DATA, 100), (DATA + 0x4000, 412), (DATA + 0x8000, 1024))
    give = (lambda: ide.command_ext(0x25, 50, 3)) if ext else (lambda: ide.command(0xC8, 50, 3))
    order = (give, ide.start) if first == "command" else (ide.start, give)
    for step in order:
        step()
    assert ide.bus_master == ACTIVE and ide.status == BSY and not ide.lines[0].level
    ide.rest()
    assert ide.status == READY and ide.lines[0].level
    assert ide.bus_master == INTERRUPT, "the table was as long as the transfer"
    expected = of_sectors(50, 3)
    pieces = ide.memory.read(DATA, 100), ide.memory.read(DATA + 0x4000, 412), ide.memory.read(DATA + 0x8000, 1024)
    assert b"".join(pieces) == expected
    ide.io(IO + 2, 1, INTERRUPT)
    ide.io(IO, 1, 0)
    assert ide.bus_master == 0


def test_dma_from_memory(ide: Ide, path: Path) -> None:
    data = random.Random(1).randbytes(200 * SECTOR)
    ide.memory.write(DATA, data)
    ide.table((DATA, 0), (DATA + 0x10000, len(data) - 0x10000))  # 0 is 64 KiB
    ide.command(0xCA, 1000, 200)
    ide.start(0)
    ide.rest()
    assert (ide.status, ide.bus_master) == (READY, INTERRUPT)
    assert path.read_bytes()[1000 * SECTOR : 1200 * SECTOR] == data
    ide.command_ext(0x3D, 1, 1)
    ide.table((DATA, SECTOR))
    ide.start(0)
    ide.rest()
    assert path.read_bytes()[SECTOR : 2 * SECTOR] == data[:SECTOR]


def test_a_long_transfer_goes_in_pieces(ide: Ide) -> None:
    count = 3000
    ide.table(*((DATA + n * 0x10000, 0) for n in range(count * SECTOR // 0x10000)),
              (DATA + count * SECTOR // 0x10000 * 0x10000, count * SECTOR % 0x10000))  # fmt: skip
    ide.command_ext(0x25, 5, count)
    ide.start()
    ide.rest()
    assert (ide.status, ide.bus_master) == (READY, INTERRUPT)
    assert ide.memory.read(DATA, count * SECTOR) == of_sectors(5, count)


def test_a_table_that_is_longer_than_the_transfer_stays_active(ide: Ide) -> None:
    ide.table((DATA, 0x4000))
    ide.command(0xC8, 0, 1)
    ide.start()
    ide.rest()
    assert ide.bus_master == ACTIVE | INTERRUPT
    assert ide.memory.read(DATA + SECTOR, SECTOR) == bytes(SECTOR)


def test_a_table_that_is_shorter_leaves_the_drive_waiting(ide: Ide) -> None:
    ide.table((DATA, SECTOR + 100))
    ide.command(0xC8, 3, 2)
    ide.start()
    ide.rest()
    assert ide.bus_master == 0 and ide.status == READY | DRQ and not ide.lines[0].level
    assert ide.memory.read(DATA, 2 * SECTOR) == of_sectors(3, 1) + bytes(SECTOR)
    ide.reset()
    assert ide.status == READY


@pytest.mark.parametrize("where", ["table", "data"])
def test_no_memory_there_is_an_error(ide: Ide, where: str) -> None:
    ide.table((0xF0000000, SECTOR))
    ide.command(0xC8, 0, 1)
    ide.io(IO + 4, 4, 0xF0000000 if where == "table" else TABLE)
    ide.io(IO, 1, START | TO_MEMORY)
    ide.rest()
    assert ide.bus_master == ERROR and not ide.lines[0].level
    ide.io(IO + 2, 1, ERROR)
    assert ide.bus_master == 0


def test_not_bus_master(ide: Ide) -> None:
    ide.ide.config_write(PCI_COMMAND, 2, 1)
    ide.table((DATA, SECTOR))
    ide.command(0xC8, 0, 1)
    ide.start()
    assert ide.bus_master == ERROR


def test_the_wrong_direction_moves_nothing(ide: Ide) -> None:
    ide.table((DATA, SECTOR))
    ide.command(0xC8, 9, 1)
    ide.start(0)
    ide.rest()
    assert ide.status == READY | DRQ and ide.memory.read(DATA, 8) == bytes(8)


def test_stopped_while_the_drive_reads(ide: Ide) -> None:
    ide.table((DATA, 0), (DATA + 0x10000, 0), *((DATA, 0) for _ in range(30)))
    ide.command_ext(0x25, 0, 3000)
    ide.start()
    ide.io(IO, 1, TO_MEMORY)
    ide.rest()
    assert ide.bus_master & ACTIVE == 0 and ide.status == READY | DRQ
    ide.reset()
    assert ide.status == READY


def test_registers_of_the_bus_master(ide: Ide) -> None:
    ide.io(IO + 4, 2, 0x1237)
    ide.io(IO + 6, 2, 0x0034)
    assert ide.io(IO + 4, 4) == 0x00341234, "dwords"
    ide.io(IO + 2, 1, 0xFF)
    assert ide.bus_master == 0x60
    ide.io(IO + 8 + 4, 4, 0xABCDEF00)
    assert ide.io(IO + 12, 4) == 0xABCDEF00 and ide.io(IO + 4, 4) == 0x00341234
    assert ide.io(IO + 15, 1) == 0xAB


def test_an_error_of_the_host(ide: Ide, path: Path) -> None:
    path.write_bytes(bytes(SECTOR))
    ide.table((DATA, SECTOR))
    ide.command(0xC8, 100, 1)
    ide.start()
    ide.rest()
    assert ide.status == READY | ERR and ide.lines[0].level and ide.inb(1) == 0x40
    assert ide.bus_master & INTERRUPT


def test_four_disks_and_no_fifth(path: Path) -> None:
    ide = Ide(*[path] * 4, readonly=True)
    assert [len(channel.drives) for channel in ide.ide.channels] == [2, 2]
    with pytest.raises(ValueError, match="at most 4 disks"):
        ide.ide.attach(AtaDisk(path, ide.disks, readonly=True))
    ide.io(0x176, 1, 0xF0)
    ide.io(0x172, 1, 1)
    ide.io(0x173, 1, 9)
    ide.io(0x177, 1, 0x20)
    ide.rest()
    assert [line.level for line in ide.lines] == [False, True]
    assert ide.io(0x170, 2) == 9
    assert ide.io(IO + 8 + 2, 1) == INTERRUPT
    ide.close()


def test_what_it_cannot_be(path: Path) -> None:
    disks = Disks(lambda call: None)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"serial": "x" * 21}, "at most 20"),
        ({"serial": "\u00e9"}, "ASCII"),
        ({"readonly": True, "temporary": True}, "do not go together"),
    ]
    for words, line in mistakes:
        with pytest.raises(UserError, match=line):
            AtaDisk(path, disks, **words)
    disks.close()


def test_a_snapshot_has_a_temporary_disk_and_a_transfer_that_is_half_done(path: Path) -> None:
    ide = Ide(path, temporary=True)
    ide.command(0x30, 5, 2)
    ide.write_data(b"1" * SECTOR + b"2" * 100)
    saved = state.save(ide.ide)
    ide.write_data(b"3" * 412)
    ide.rest()
    ide.command(0x20, 6, 1)
    ide.rest()
    assert ide.read_data() == b"2" * 100 + b"3" * 412
    state.load(ide.ide, saved)
    assert ide.status == READY | DRQ
    ide.write_data(b"4" * 412)
    ide.rest()
    ide.command(0x20, 6, 1)
    ide.rest()
    assert ide.read_data() == b"2" * 100 + b"4" * 412
    other = Ide(path, temporary=True)
    ide.ide.check_saved(saved)
    state.load(other.ide, ide.ide.portable(saved))
    other.write_data(b"5" * 412)
    other.rest()
    other.command(0x20, 5, 2)
    other.rest()
    assert other.read_data(2 * SECTOR) == b"1" * SECTOR + b"2" * 100 + b"5" * 412
    for one in (ide, other):
        one.close()


def test_a_disk_that_was_written_since_is_refused(ide: Ide) -> None:
    saved = state.save(ide.ide)
    ide.ide.check_saved(saved)
    ide.command(0x30, 5, 1)
    ide.write_data(bytes(SECTOR))
    ide.rest()
    with pytest.raises(UserError, match="was written to since"):
        ide.ide.check_saved(saved)


def test_regions_of_two_bytes_hold_nobody_up(ide: Ide) -> None:
    """As many as a table can have; bounded by what is done, not by the clock: pieces of 256 regions."""
    entries = b"".join(struct.pack("<II", DATA + 2 * n, 2) for n in range(8192))
    ide.memory.write(0x200000, entries)
    ide.command_ext(0x25, 0, 100)
    ide.io(IO + 4, 4, 0x200000)
    master = ide.ide.masters[0]
    ide.io(IO, 1, START | TO_MEMORY)
    assert master._count <= 256 + 256
    ide.rest()
    assert ide.memory.read(DATA, 32 * SECTOR) == of_sectors(0, 32)
    assert ide.bus_master == 0 and ide.status == READY | DRQ


@settings(deadline=None, max_examples=max(1, OPS // 480))
@given(seed=st.integers(0, 1 << 32))
def test_whatever_a_guest_does_with_table_and_ports(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    path = tmp_path_factory.getbasetemp() / "fuzzed.img"
    if not path.exists():
        path.write_bytes(bytes(300 * SECTOR))
    ide = Ide(path, temporary=True)
    try:
        for _ in range(60):
            for n in range(8):
                address = chance.choice((DATA, 0x3FFFFE, 0x3FFF00, 0xFFFFFFFE, chance.getrandbits(22)))
                size = chance.choice((0, 2, 511, 512, 4096, chance.getrandbits(16)))
                ide.memory.write(TABLE + 8 * n, struct.pack("<II", address, size | chance.choice((0, 0, 1 << 31))))
            give = chance.choice((ide.command, ide.command_ext))
            give(
                chance.choice((0xC8, 0xCA, 0x25, 0x35, 0x3D, 0x20, 0x30)), chance.randrange(310), chance.randrange(200)
            )
            ide.io(IO + 4, 4, chance.choice((TABLE, TABLE, 0x3FFFF8, 0xFFFFFFFC, chance.getrandbits(32))))
            ide.io(IO + chance.randrange(8), chance.choice((1, 2, 4)), chance.getrandbits(8))
            ide.io(IO, 1, chance.choice((0, 1, 8, 9, 9)))
            if chance.randrange(3) == 0:
                ide.io(chance.choice((0x1F0, 0x1F1, 0x1F6, 0x1F7, 0x3F6, 0x170, 0x376)), chance.choice((1, 2, 4)), 4)
            if chance.randrange(4) == 0:
                ide.ide.config_write(chance.choice((4, 0x20, 0x40, 0x42)), 2, chance.getrandbits(16))
            if chance.randrange(4) == 0:
                ide.rest()
            if chance.randrange(6) == 0:
                ide.control(4)
                ide.control(0)
            if chance.randrange(20) == 0:
                ide.ide.config_write(0x20, 4, IO)
                ide.ide.config_write(0x40, 4, 0x80008000)
                ide.ide.config_write(PCI_COMMAND, 2, 5)
        ide.rest()
    finally:
        ide.close()
