"""An ATA drive by what its driver sees: each command, interrupts, resets, two drives on a cable."""

from __future__ import annotations

import os
import random
import struct
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.ata import AtaDrive
from pyvmm.devices.ata_abi import TRANSFERS
from pyvmm.devices.ata_channel import AtaChannel
from pyvmm.irq import FakeIrq
from tests.rig.ata_driver import ABRT, BSY, DRQ, ERR, HOB, IDNF, NIEN, READY, SECTOR, SRST, UNC, AtaDriver, FakeMedium

SECTORS = 2000
OPS = int(os.environ.get("PYVMM_SOAK_OPS", "24000"))
"""Operations of random guests; scripts/soak legacy has more."""


class Rig(AtaDriver):
    """A channel with drives on *media*."""

    def __init__(self, *media: FakeMedium) -> None:
        self.media = media
        self.line = FakeIrq()
        super().__init__(AtaChannel(self.line))
        self.drives = [AtaDrive(medium, "a model", f"serial {n}", "1.2") for n, medium in enumerate(media)]
        for drive in self.drives:
            self.channel.attach(drive)

    def interrupts(self) -> int:
        """How many came since it was asked last."""
        edges, self.line.edges = self.line.edges, 0
        return edges


@pytest.fixture
def medium() -> FakeMedium:
    return FakeMedium(SECTORS)


@pytest.fixture
def rig(medium: FakeMedium) -> Rig:
    return Rig(medium)


def text(words: tuple[int, ...]) -> str:
    return b"".join(word.to_bytes(2, "big") for word in words).decode().rstrip()


def test_it_says_what_it_is(rig: Rig) -> None:
    words = rig.identify()
    assert rig.status == READY
    assert (text(words[10:20]), text(words[23:27]), text(words[27:47])) == ("serial 0", "1.2", "a model")
    assert words[0] & 0x8080 == 0, "no packets, not removable"
    assert (words[1], words[3], words[6]) == (1, 16, 63)
    assert words[49] & 0x0300 == 0x0300, "LBA and DMA"
    assert (words[60], words[61]) == (SECTORS, 0) and words[100:104] == (SECTORS, 0, 0, 0)
    assert words[63] == 0x0007 and words[64] == 0x0003 and words[80] & 0x0040
    assert words[83] & 0xC400 == 0x4400 and words[86] & 0x0400, "48-bit addresses"
    assert sum(byte for word in words for byte in divmod(word, 256)) & 0xFF == 0 and words[255] & 0xFF == 0xA5


def test_a_large_one_says_as_much_as_28_bits_hold() -> None:
    medium = FakeMedium(1)
    medium.sectors = 1 << 33
    words = Rig(medium).identify()
    assert words[60] | words[61] << 16 == 0x0FFFFFFF
    assert words[100:104] == (0, 0, 2, 0) and words[1] == 16383


@pytest.mark.parametrize("code", [0x20, 0x21])
def test_sectors_come_one_by_one_each_with_an_interrupt(rig: Rig, medium: FakeMedium, code: int) -> None:
    assert rig.command(code, 5, 3) == READY | DRQ
    for sector in (5, 6, 7):
        assert rig.line.level and rig.interrupts() == 1
        assert rig.inb(7) == READY | DRQ and not rig.line.level, "reading the status ends the interrupt"
        assert rig.read_data() == bytes([sector]) * SECTOR
    assert rig.status == READY and rig.interrupts() == 0
    assert medium.log == [("read", 5, 3, False)]
    assert rig.read_data(4) == b"\xff" * 4


def test_a_count_of_zero_is_256_and_more_than_the_buffer_comes_in_pieces(rig: Rig, medium: FakeMedium) -> None:
    rig.command(0x20, 100, 0)
    assert b"".join(rig.read_data() for _ in range(256)) == bytes(medium.data[100 * SECTOR : 356 * SECTOR])
    assert rig.status == READY
    assert medium.log == [("read", 100, 128, False), ("read", 228, 128, False)]


def test_writes(rig: Rig, medium: FakeMedium) -> None:
    assert rig.command(0x30, 10, 2) == READY | DRQ
    assert not rig.line.level, "no interrupt for the first block"
    rig.write_data(b"a" * SECTOR)
    assert rig.interrupts() == 1 and rig.inb(7) == READY | DRQ
    assert medium.log == []
    rig.write_data(b"b" * SECTOR)
    assert rig.interrupts() == 1 and rig.inb(7) == READY
    assert medium.data[10 * SECTOR : 12 * SECTOR] == b"a" * SECTOR + b"b" * SECTOR
    assert medium.log == [("write", 10, 2, False)]


def test_data_registers_of_32_bits_and_of_8(rig: Rig) -> None:
    rig.command(0x20, 7, 2)
    block = rig.channel.command_block
    assert [block.read(0, 4) for _ in range(128)] == [0x07070707] * 128
    assert [block.read(0, 1) for _ in range(256)] == [8] * 256, "each a word"
    assert rig.status == READY


@pytest.mark.parametrize(
    ("read", "write", "ext"), [(0xC4, 0xC5, False), (0x29, 0x39, True)], ids=["28 bits", "48 bits"]
)
def test_multiple(rig: Rig, medium: FakeMedium, read: int, write: int, ext: bool) -> None:
    give = rig.command_ext if ext else rig.command
    assert give(read, 3, 5) == READY | ERR and rig.inb(1) == ABRT, "not before SET MULTIPLE"
    for count, error in ((3, ABRT), (32, ABRT), (4, 0)):
        rig.command(0xC6, count=count)
        assert rig.inb(1) == error
    assert rig.identify()[59] == 0x0104
    rig.interrupts()
    give(read, 3, 6)
    assert rig.interrupts() == 1 and rig.inb(7) == READY | DRQ
    assert rig.read_data(4 * SECTOR)[-1] == 6
    assert rig.inb(7) == READY | DRQ and rig.interrupts() == 1
    assert rig.read_data(2 * SECTOR) == b"\x07" * SECTOR + b"\x08" * SECTOR
    assert rig.inb(7) == READY
    give(write, 3, 6)
    rig.write_data(b"x" * (6 * SECTOR))
    assert medium.data[3 * SECTOR : 9 * SECTOR] == b"x" * (6 * SECTOR) and rig.inb(7) == READY
    rig.command(0xC6, count=0)
    assert give(read, 3, 1) == READY | ERR


def test_addresses_of_48_bits(medium: FakeMedium) -> None:
    medium.sectors = (5 << 32) + 2
    rig = Rig(medium)
    assert rig.command_ext(0x42, 5 << 32, 2) == READY
    assert medium.log == [("read", 5 << 32, 2, False)]
    assert rig.command_ext(0x42, 5 << 32, 3) == READY | ERR and rig.inb(1) == IDNF


def test_hob_shows_what_was_written_before(rig: Rig) -> None:
    rig.outb(3, 0x12)
    rig.outb(3, 0x34)
    assert rig.inb(3) == 0x34
    rig.control(HOB)
    assert rig.inb(3) == 0x12
    rig.outb(4, 0)
    assert rig.inb(3) == 0x34, "a write to the command block ends it"


def test_cylinders_heads_and_sectors(rig: Rig) -> None:
    def chs(cylinder: int, head: int, sector: int) -> int:
        for register, value in ((6, 0xA0 | head), (2, 1), (3, sector), (4, cylinder & 0xFF), (5, cylinder >> 8)):
            rig.outb(register, value)
        rig.outb(7, 0x20)
        return rig.status

    assert chs(0, 1, 2) == READY | DRQ and rig.read_data() == bytes([63 + 1]) * SECTOR
    assert chs(0, 0, 0) == READY | ERR and rig.inb(1) == IDNF
    assert chs(0, 0, 64) == READY | ERR
    rig.command(0x91, count=10, device=0xA1)
    words = rig.identify()
    assert words[54:57] == (100, 2, 10) and words[57] == SECTORS
    assert chs(3, 1, 4) == READY | DRQ and rig.read_data() == bytes([3 * 20 + 10 + 3]) * SECTOR
    assert chs(0, 2, 1) == READY | ERR
    assert rig.command(0x91, count=0) == READY | ERR


@pytest.mark.parametrize("code", sorted(code for code, transfer in TRANSFERS.items() if not transfer.multiple))
def test_what_lies_beyond_the_end_is_not_found(rig: Rig, medium: FakeMedium, code: int) -> None:
    give = rig.command_ext if TRANSFERS[code].ext else rig.command
    assert give(code, SECTORS - 1, 2) == READY | ERR
    assert rig.line.level and rig.inb(1) == IDNF and medium.log == []
    assert give(code, SECTORS - 1, 1) & ERR == 0


def test_what_it_does_not_know_it_aborts(rig: Rig) -> None:
    known = {*TRANSFERS, 0x27, 0x90, 0x91, 0xC6, 0xEC, 0xEF, 0xF8, *range(0x10, 0x20), *range(0x70, 0x80)}
    known |= {0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6, 0xE7, 0xEA}
    for code in {*range(256)} - known:
        assert rig.command(code) == READY | ERR and rig.inb(1) == ABRT, hex(code)
        assert rig.interrupts() == 1
        rig.inb(7)


def test_flushes_and_the_write_cache(rig: Rig, medium: FakeMedium) -> None:
    for code in (0xE7, 0xEA):
        assert rig.command(code) == READY and rig.interrupts() == 1
        rig.inb(7)
    assert medium.log == [("flush", 0, 0, False)] * 2
    assert rig.identify()[85] & 0x20
    rig.command(0xEF, feature=0x82)
    assert medium.log[2:] == [("flush", 0, 0, False)] and not rig.identify()[85] & 0x20
    rig.command(0x30, 1, 1)
    rig.write_data(bytes(SECTOR))
    rig.command(0xEF, feature=0x02)
    rig.command(0x30, 1, 1)
    rig.write_data(bytes(SECTOR))
    rig.command(0xC6, count=2)
    rig.command_ext(0xCE, 1, 1)
    rig.write_data(bytes(SECTOR))
    assert [through for what, _, _, through in medium.log if what == "write"] == [True, False, True]


def test_features(rig: Rig) -> None:
    for mode, words in ((0x22, 0x0407), (0x20, 0x0107), (0x0C, 0x0007), (0x00, 0x0007)):
        assert rig.command(0xEF, count=mode, feature=0x03) == READY
        assert rig.identify()[63] == words
    for feature, count in ((0x03, 0x45), (0x03, 0x0D), (0x05, 0x80), (0x99, 0)):
        assert rig.command(0xEF, count=count, feature=feature) == READY | ERR and rig.inb(1) == ABRT
    for feature in (0x55, 0xAA, 0x66, 0xCC):
        assert rig.command(0xEF, feature=feature) == READY


def test_power(rig: Rig, medium: FakeMedium) -> None:
    def power() -> int:
        assert rig.command(0xE5) == READY
        return rig.inb(2)

    assert power() == 0xFF
    for code, mode in ((0xE1, 0x80), (0xE3, 0x80), (0xE0, 0), (0xE2, 0)):
        assert rig.command(code) == READY and power() == mode
    assert medium.log == [("flush", 0, 0, False)] * 2, "standby has nothing in its cache"
    rig.command(0x20, 0, 1)
    rig.read_data()
    assert power() == 0xFF
    rig.command(0xE6)
    rig.inb(7)
    rig.interrupts()
    rig.command(0xEC)
    assert rig.interrupts() == 0 and not rig.status & DRQ, "asleep"
    rig.reset()
    assert power() == 0xFF


def test_native_max(rig: Rig, medium: FakeMedium) -> None:
    assert rig.command(0xF8) == READY and rig.sector() == SECTORS - 1
    assert rig.command(0x27) == READY and rig.inb(3) | rig.inb(4) << 8 == SECTORS - 1
    medium.sectors = 1 << 33
    large = Rig(medium)
    assert large.command(0xF8) == READY and large.sector() == 0x0FFFFFFE
    assert large.command(0x27) == READY
    large.control(HOB)
    assert [large.inb(at) for at in (3, 4, 5)] == [0xFF, 1, 0]


def test_verify_and_seek_move_no_data(rig: Rig, medium: FakeMedium) -> None:
    assert rig.command(0x40, 10, 200) == READY and rig.interrupts() == 1
    assert medium.log == [("read", 10, 128, False), ("read", 138, 72, False)]
    rig.inb(7)
    assert rig.command(0x70, SECTORS - 1) == READY and rig.interrupts() == 1
    rig.inb(7)
    assert rig.command(0x70, SECTORS) == READY | ERR


def test_busy_until_the_medium_answers() -> None:
    medium = FakeMedium(SECTORS, slow=True)
    rig = Rig(medium)
    assert rig.command(0x20, 3, 1) == BSY
    assert not rig.line.level
    rig.outb(3, 77)
    rig.outb(7, 0xEC)
    rig.outb(6, 0xF0)
    assert rig.status == BSY and len(medium.under_way) == 1, "nothing is taken meanwhile"
    medium.answer()
    assert rig.line.level and rig.read_data() == b"\x03" * SECTOR
    assert rig.inb(3) == 3
    rig.command(0x30, 9, 1)
    rig.write_data(b"z" * SECTOR)
    assert rig.status == BSY
    medium.answer()
    assert rig.status == READY


@pytest.mark.parametrize(("code", "error"), [(0x20, UNC), (0x30, ABRT), (0x40, UNC), (0xE7, ABRT), (0x24, UNC)])
def test_an_error_of_the_medium(rig: Rig, medium: FakeMedium, code: int, error: int) -> None:
    medium.fails = True
    give = rig.command_ext if code == 0x24 else rig.command
    give(code, 0x123, 1)
    if code == 0x30:
        rig.write_data(bytes(SECTOR))
    assert rig.status == READY | ERR and rig.inb(1) == error and rig.line.level
    if code in (0x20, 0x30, 0x40):
        assert rig.sector() == 0x123
    medium.fails = False
    rig.command(0x20, 1, 1)
    assert rig.inb(1) == 0 and rig.read_data() == b"\x01" * SECTOR


def test_an_error_in_the_second_piece_names_it(rig: Rig, medium: FakeMedium) -> None:
    rig.command(0x20, 0, 0)
    medium.fails = True
    for _ in range(128):
        rig.read_data()
    assert rig.status == READY | ERR and rig.sector() == 128


def test_a_disk_that_is_read_only_aborts_writes() -> None:
    rig = Rig(FakeMedium(SECTORS, readonly=True))
    for code in (0x30, 0xCA):
        assert rig.command(code, 0, 1) == READY | ERR and rig.inb(1) == ABRT
    assert rig.command_ext(0x35, 0, 1) == READY | ERR
    assert rig.command(0x20, 0, 1) == READY | DRQ


def test_nien_keeps_the_interrupt_off_the_cable(rig: Rig) -> None:
    rig.control(NIEN)
    rig.command(0x20, 0, 1)
    assert not rig.line.level
    rig.control(0)
    assert rig.line.level, "it waited"
    rig.inb(7)
    assert not rig.line.level


def signature(rig: Rig) -> list[int]:
    return [rig.inb(at) for at in (1, 2, 3, 4, 5)]


def test_a_software_reset(rig: Rig) -> None:
    rig.command(0xC6, count=8)
    rig.command(0x20, 9, 3)
    rig.control(SRST)
    assert rig.status == BSY and not rig.line.level
    rig.control(0)
    assert rig.status == READY and not rig.line.level
    assert signature(rig) == [1, 1, 1, 0, 0] and rig.inb(6) & 0x1F == 0
    assert rig.identify()[59] == 0
    rig.command(0xEF, feature=0x66)
    rig.command(0xC6, count=8)
    rig.reset()
    assert rig.identify()[59] == 0x0108, "SET FEATURES 66h"


def test_a_software_reset_waits_for_what_is_under_way() -> None:
    medium = FakeMedium(SECTORS, slow=True)
    rig = Rig(medium)
    rig.command(0x20, 9, 3)
    rig.reset()
    assert rig.status == BSY
    medium.answer()
    assert rig.status == READY and not rig.line.level and signature(rig) == [1, 1, 1, 0, 0]
    rig.command(0x20, 8, 1)
    rig.control(SRST)
    medium.answer()
    assert rig.status == BSY, "it is held"
    rig.control(0)
    assert rig.status == READY


def test_what_ends_after_a_hard_reset_is_nobodys() -> None:
    medium = FakeMedium(SECTORS, slow=True)
    rig = Rig(medium)
    rig.command(0x20, 9, 1)
    rig.channel.reset()
    assert rig.status == READY
    rig.command(0x20, 10, 1)
    medium.answer()
    assert rig.status == BSY, "not the new command's"
    medium.answer()
    assert rig.read_data() == b"\x0a" * SECTOR


def test_diagnostic(rig: Rig) -> None:
    rig.command(0x90, device=0xF0)
    assert rig.line.level and signature(rig) == [1, 1, 1, 0, 0] and rig.inb(6) & 0x10 == 0


def test_a_drive_that_is_not_there(rig: Rig) -> None:
    rig.outb(6, 0xF0)
    assert (rig.inb(7), rig.status) == (0, 0)
    rig.outb(2, 0x55)
    assert rig.inb(2) == 0x55, "device 0 answers for it"
    rig.outb(7, 0xEC)
    assert rig.inb(7) == 0 and not rig.line.level
    rig.outb(6, 0xE0)
    assert rig.inb(7) == READY and rig.inb(6) == 0xE0


def test_an_empty_cable_floats() -> None:
    rig = Rig()
    assert [rig.inb(at) for at in range(1, 8)] == [0x7F] * 7 and rig.status == 0x7F
    rig.command(0x90)
    rig.reset()
    assert rig.channel.command_block.read(0, 2) & 0xFFFF == 0xFF7F


def test_two_drives() -> None:
    media = FakeMedium(SECTORS), FakeMedium(SECTORS)
    media[1].data[:SECTOR] = b"second" + bytes(SECTOR - 6)
    rig = Rig(*media)
    assert rig.command(0x20, 0, 1, device=0xF0) == READY | DRQ
    assert rig.read_data()[:6] == b"second"
    assert rig.line.level
    rig.command(0xEC, device=0xF0)
    assert text(struct.unpack("<256H", rig.read_data())[10:20]) == "serial 1"
    rig.outb(6, 0xE0)
    assert not rig.line.level, "the interrupt is of the drive that is selected"
    rig.outb(6, 0xF0)
    assert rig.line.level
    rig.reset()
    assert rig.inb(6) & 0x10 == 0
    assert rig.inb(7) == READY


def test_registers_take_any_width(rig: Rig) -> None:
    rig.channel.command_block.write(2, 4, 0xE0030201)
    assert [rig.inb(at) for at in (2, 3, 4)] == [1, 2, 3]
    assert rig.channel.command_block.read(2, 4) == 0xE0030201
    assert rig.channel.command_block.read(7, 4) == READY


COMMANDS = sorted({*TRANSFERS, 0xEC, 0xC6, 0xEF, 0xE7, 0x91, 0x90, 0xE0, 0xE6, 0xF8, 0x27, 0x42})


@settings(deadline=None, max_examples=max(1, OPS // 400))
@given(seed=st.integers(0, 1 << 32), slow=st.booleans(), drives=st.integers(0, 2))
def test_whatever_a_guest_does(seed: int, slow: bool, drives: int) -> None:
    """Nothing raises, nothing grows, and what is read is within the width."""
    chance = random.Random(seed)
    rig = Rig(*(FakeMedium(300, slow) for _ in range(drives)))
    recent: deque[str] = deque(maxlen=20)
    for _ in range(400):
        kind = chance.randrange(8)
        size = chance.choice((1, 2, 4))
        recent.append(f"{kind}")
        if kind == 0:
            rig.channel.command_block.write(chance.randrange(8), size, chance.getrandbits(8 * size))
        elif kind == 1:
            rig.channel.command_block.read(chance.randrange(8), size)
        elif kind == 2:
            rig.control(chance.choice((0, 0, 0, NIEN, SRST, HOB)))
        elif kind in (3, 4):
            give = chance.choice((rig.command, rig.command_ext))
            give(chance.choice(COMMANDS), chance.randrange(310), chance.choice((0, 1, 2, 8, 16, 200)),
                 device=chance.choice((0xE0, 0xE0, 0xA0, 0xF0)))  # fmt: skip
        elif kind == 5:
            for _ in range(chance.randrange(600)):
                rig.channel.command_block.read(0, size)
        elif kind == 6:
            for _ in range(chance.randrange(600)):
                rig.channel.command_block.write(0, size, 0x5A)
        else:
            for medium in rig.media:
                if medium.under_way:
                    medium.answer()
        assert all(len(drive._buffer) == 65536 for drive in rig.drives)
        assert all(len(medium.under_way) <= 2 for medium in rig.media)


def test_a_string_of_words_is_what_the_words_are(rig: Rig) -> None:
    rig.command(0x20, 5, 2)
    block = rig.channel.command_block
    rig.inb(7)
    rig.interrupts()
    assert block.read_string(0, 2, 10) == b"\x05" * 20
    assert block.read_string(0, 4, 124) is None, "more than there is"
    assert block.read_string(0, 4, 123) == b"\x05" * 492
    assert rig.interrupts() == 1 and rig.read_data() == b"\x06" * SECTOR
    assert block.read_string(0, 2, 1) is None
    assert block.read_string(7, 2, 2) is None and block.read_string(0, 1, 2) is None
