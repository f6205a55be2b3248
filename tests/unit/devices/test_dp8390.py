"""The DP8390 by what a driver sees: registers, remote DMA, the ring, filters, overruns."""

from __future__ import annotations

import os
import random
from binascii import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.dp8390 import Dp8390, multicast_hash
from pyvmm.irq import FakeIrq

MAC = bytes.fromhex("525400123456")
PEER = bytes.fromhex("525400000001")
START, STOP = 0x46, 0x80
PRX, PTX, RXE, TXE, OVW, CNT, RDC, RST = (1 << n for n in range(8))
AR, AB, AM, PRO, MON = 2, 4, 8, 16, 32
ISR, RSR, TSR, BNRY, CURR = 7, 12, 4, 3, 7
OPS = int(os.environ.get("PYVMM_SOAK_OPS", "30000"))
"""Operations of random guests; scripts/soak legacy has more."""


def frame(to: bytes = MAC, size: int = 100) -> bytes:
    return to + PEER + b"\x88\xb5" + bytes(n & 0xFF for n in range(size - 14))


class Card:
    """The chip and its driver."""

    def __init__(self) -> None:
        self.irq = FakeIrq()
        self.sent: list[bytes] = []
        self.rooms = 0
        self.chip = Dp8390(MAC, self.irq, self.sent.append, self._room)

    def _room(self) -> None:
        self.rooms += 1

    def inb(self, offset: int) -> int:
        return self.chip.read(offset, 1)

    def outb(self, offset: int, value: int) -> None:
        self.chip.write(offset, 1, value)

    def page(self, number: int) -> None:
        self.outb(0, number << 6 | 0x20 | self.inb(0) & 3)

    def read_1(self, offset: int) -> int:
        """A register of page 1."""
        self.page(1)
        value = self.inb(offset)
        self.page(0)
        return value

    def write_1(self, offset: int, *values: int) -> None:
        self.page(1)
        for at, value in enumerate(values, offset):
            self.outb(at, value)
        self.page(0)

    def start(self, rcr: int = AB, tcr: int = 0, dcr: int = 0x49, imr: int = 0x3F) -> None:
        """As Linux's 8390.c does."""
        ring = ((4, 0x40), (1, START), (3, START), (2, STOP))
        for offset, value in ((0, 0x21), (0x0E, dcr), (0x0A, 0), (0x0B, 0), (0x0C, 0x20), (0x0D, 2), *ring):
            self.outb(offset, value)
        self.outb(7, 0xFF)
        self.outb(0x0F, 0)
        self.write_1(1, *MAC)
        self.write_1(CURR, START + 1)
        for offset, value in ((0, 0x22), (7, 0xFF), (0x0F, imr), (0x0D, tcr), (0x0C, rcr)):
            self.outb(offset, value)

    def remote(self, command: int, address: int, count: int) -> None:
        for offset, value in ((0x0A, count & 0xFF), (0x0B, count >> 8), (8, address & 0xFF), (9, address >> 8)):
            self.outb(offset, value)
        self.outb(0, command | self.inb(0) & 3)

    def load(self, address: int, count: int, size: int = 2) -> bytes:
        self.remote(0x08, address, count)
        return b"".join(self.chip.read(0x10, size).to_bytes(size, "little") for _ in range(count // size))

    def store(self, address: int, data: bytes, size: int = 2) -> None:
        self.remote(0x10, address, len(data))
        for at in range(0, len(data), size):
            self.chip.write(0x10, size, int.from_bytes(data[at : at + size], "little"))

    def transmit(self, data: bytes) -> None:
        self.store(0x4000, data)
        for offset, value in ((4, 0x40), (5, len(data) & 0xFF), (6, len(data) >> 8), (0, 0x26)):
            self.outb(offset, value)

    def take(self) -> bytes:
        """The next frame of the ring, FCS and all; BNRY follows."""
        page = self.inb(BNRY) + 1
        page = START if page >= STOP else page
        _, following, low, high = self.load(page << 8, 4)
        data = self.load((page << 8) + 4, (low | high << 8) + 1 & ~1)[: low | high << 8]
        self.outb(BNRY, following - 1 if following > START else STOP - 1)
        return data


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def running(card: Card) -> Card:
    card.start()
    return card


def test_a_driver_finds_it(card: Card) -> None:
    """ne2k_pci_init_one(): a counter that reading clears, and the PROM by bytes in word mode."""
    card.outb(0, 0x61)
    card.outb(0x0D, 0xFF)
    card.outb(0, 0x20)
    card.inb(0x0D)
    assert card.inb(0x0D) == 0
    assert (card.inb(0x0A), card.inb(0x0B)) == (0x50, 0x43), "an RTL8029"
    assert card.inb(0x1F) == 0 and card.inb(ISR) & RST
    card.outb(0x0E, 0x49)
    card.remote(0x0A, 0, 32)
    prom = [card.inb(0x10) for _ in range(32)]
    assert bytes(prom[:6]) == MAC and prom[14:16] == [0x57, 0x57]
    assert card.inb(ISR) & RDC


def test_the_prom_doubles_each_byte(card: Card) -> None:
    card.outb(0x0E, 0x48)
    prom = card.load(0, 32, 1)
    assert prom[:12] == bytes(byte for byte in MAC for _ in range(2)) and prom[28:] == b"\x57" * 4


@pytest.mark.parametrize(("dcr", "size"), [(0x48, 1), (0x49, 2), (0x49, 4)])
def test_remote_dma(running: Card, dcr: int, size: int) -> None:
    running.start(dcr=dcr, imr=0x7F)
    data = random.Random(1).randbytes(64)
    running.store(0x4100, data, size)
    assert running.inb(ISR) == RDC and running.irq.level
    running.outb(ISR, RDC)
    assert not running.irq.level
    assert running.load(0x4100, 64, size) == data
    assert running.chip.read(0x10, 2) == 0xFFFF, "no more than was asked for"
    assert running.inb(8) | running.inb(9) << 8 == 0x4140


def test_remote_dma_goes_round_the_ring(running: Card) -> None:
    running.store(0x7FF0, b"ab" * 8)
    running.store(START << 8, b"cd" * 8)
    assert running.load(0x7FF0, 32) == b"ab" * 8 + b"cd" * 8


def test_where_there_is_no_memory(running: Card) -> None:
    running.store(0x2000, b"1234")
    assert running.load(0x2000, 4) == b"\xff" * 4
    running.store(0xFFFE, b"1234")
    running.store(0x3FFE, b"1234")
    assert running.load(0x3FFE, 4) == b"\xff\xff34"


def test_a_remote_dma_of_nothing_is_complete_and_one_can_be_given_up(running: Card) -> None:
    running.remote(0x08, 0x4000, 0)
    assert running.inb(ISR) & RDC
    running.outb(ISR, RDC)
    running.remote(0x10, 0x4000, 8)
    running.outb(0, 0x22)
    running.chip.write(0x10, 2, 0x1111)
    assert running.inb(ISR) == 0 and running.load(0x4000, 2) == b"\0\0"


def test_transmit(running: Card) -> None:
    running.transmit(frame(PEER))
    assert running.sent == [frame(PEER)]
    assert running.inb(ISR) == PTX | RDC and running.irq.level and running.inb(TSR) & 1
    assert running.inb(0) & 4 == 0
    running.outb(0, 0x21)
    running.outb(0, 0x25)
    assert len(running.sent) == 1, "not while it is stopped"


def test_loopback_sends_nothing(running: Card) -> None:
    running.outb(0x0D, 2)
    running.transmit(frame())
    assert running.sent == [] and running.inb(TSR) == 0x53 and running.inb(ISR) & PTX
    running.chip.receive(frame())
    assert not running.inb(ISR) & PRX
    running.page(2)
    assert running.inb(0x0D) & 0x1F == 2


def test_receive(running: Card) -> None:
    for n, size in enumerate((60, 100, 248, 249, 1514)):
        running.chip.receive(frame(size=size))
        assert running.inb(ISR) & PRX and running.irq.level
        running.outb(ISR, 0xFF)
        assert not running.irq.level and running.inb(RSR) == 1, n
    for size in (60, 100, 248, 249, 1514):
        sent = frame(size=size)
        assert running.take() == sent + crc32(sent).to_bytes(4, "little")
    assert running.read_1(CURR) == START + 1 + 1 + 1 + 1 + 2 + 6


def test_a_command_that_neither_starts_nor_stops_it(running: Card) -> None:
    """As Linux gives for another page, while frames come."""
    running.outb(0, 0x60)
    running.chip.receive(frame(size=60))
    running.outb(0, 0x20)
    running.chip.receive(frame(size=100))
    assert [len(running.take()) for _ in range(2)] == [64, 104]
    running.outb(0, 0x21)
    running.outb(0, 0x20)
    running.chip.receive(frame(size=60))
    assert running.inb(ISR) & RST and running.read_1(CURR) == START + 3


def test_a_short_frame_is_padded(running: Card) -> None:
    running.chip.receive(frame(size=20))
    assert running.take()[:60] == frame(size=20).ljust(60, b"\0")


def test_the_ring_goes_round(running: Card) -> None:
    chance = random.Random(3)
    for n in range(300):
        sent = frame(size=chance.randrange(60, 1515))
        running.chip.receive(sent)
        assert running.take()[:-4] == sent, n
    assert running.inb(0x0F) == 0


def test_an_overrun_loses_the_frame_and_no_other(running: Card) -> None:
    kept = 0
    while running.chip.has_room(1514):
        running.chip.receive(frame(size=1514))
        kept += 1
    assert kept == (STOP - START - 1) // 6 and not running.inb(ISR) & OVW
    running.chip.receive(frame(size=1514))
    assert running.inb(ISR) & OVW and running.inb(0x0F) == 1, "a missed packet"
    assert running.inb(0x0F) == 0, "reading clears"
    before = running.rooms
    for _ in range(kept):
        assert running.take()[:-4] == frame(size=1514)
    assert running.rooms > before
    assert running.chip.has_room(1514)


def test_a_frame_that_never_fits_waits_for_nothing(running: Card) -> None:
    assert running.chip.has_room(20000)
    running.chip.receive(frame(size=20000))
    assert running.inb(ISR) & OVW


@pytest.mark.parametrize(
    ("rcr", "to", "taken"),
    [
        (0, MAC, True),
        (0, PEER, False),
        (0, b"\xff" * 6, False),
        (AB, b"\xff" * 6, True),
        (AB, b"\x01\x00\x5e\x00\x00\x01", False),
        (AM, b"\x01\x00\x5e\x00\x00\x01", True),
        (AM, b"\x01\x00\x5e\x00\x00\x02", False),
        (PRO, PEER, True),
    ],
)
def test_filters(running: Card, rcr: int, to: bytes, taken: bool) -> None:
    running.outb(0x0C, rcr)
    bit = multicast_hash(b"\x01\x00\x5e\x00\x00\x01")
    running.write_1(8 + (bit >> 3), 1 << (bit & 7))
    running.chip.receive(frame(to))
    assert bool(running.inb(ISR) & PRX) == taken
    if taken:
        assert running.inb(RSR) == (0x21 if to[0] & 1 else 1)


def test_multicast_hash() -> None:
    """ether_crc(ETH_ALEN, address) >> 26, computed bit by bit as in Linux before crc32."""
    for address in (b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01", b"\x01\x80\xc2\x00\x00\x00"):
        crc = 0xFFFFFFFF
        for byte in address:
            for bit in range(8):
                feedback = (crc >> 31) ^ (byte >> bit & 1)
                crc = (crc << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if feedback else 0)
        assert multicast_hash(address) == crc >> 26


def test_monitoring_counts(running: Card) -> None:
    running.outb(0x0C, MON)
    for _ in range(130):
        running.chip.receive(frame())
    assert not running.inb(ISR) & PRX and running.inb(ISR) & CNT
    assert running.inb(0x0F) == 130


def test_stopped_it_takes_nothing(running: Card) -> None:
    running.outb(0, 0x21)
    assert running.inb(ISR) & RST
    assert running.chip.has_room(100)
    running.chip.receive(frame())
    assert running.read_1(CURR) == START + 1
    running.outb(0, 0x22)
    assert not running.inb(ISR) & RST


def test_send_packet(running: Card) -> None:
    """Remote DMA command 011 reads the frame at BNRY and moves BNRY on."""
    running.outb(BNRY, START + 1)
    running.chip.receive(frame(size=60))
    running.outb(0, 0x1A)
    data = b"".join(running.chip.read(0x10, 2).to_bytes(2, "little") for _ in range(32))
    assert data[4:] == frame(size=60) and running.inb(BNRY) == START + 2 and running.inb(ISR) & RDC


def test_page_2_shows_what_page_0_was_given(running: Card) -> None:
    running.page(2)
    assert [running.inb(at) for at in (1, 2, 4, 0x0C, 0x0E, 0x0F)] == [START, STOP, 0x40, 0xC4, 0xC9, 0xBF]
    running.outb(1, 0)
    assert running.inb(1) == START
    running.page(3)
    assert (running.inb(0x0E), running.inb(0x0F)) == (0x29, 0x80)


def test_interrupts_are_masked(running: Card) -> None:
    running.outb(0x0F, PTX)
    running.chip.receive(frame())
    assert running.inb(ISR) & PRX and not running.irq.level
    running.outb(0x0F, PRX)
    assert running.irq.level
    running.inb(0x18)
    assert not running.irq.level and running.inb(ISR) == RST


@settings(deadline=None, max_examples=max(1, OPS // 500))
@given(seed=st.integers(0, 1 << 32))
def test_whatever_a_guest_does(seed: int) -> None:
    chance = random.Random(seed)
    card = Card()
    for _ in range(500):
        kind, size = chance.randrange(6), chance.choice((1, 2, 4))
        if kind == 0:
            card.start(rcr=chance.getrandbits(6))
        elif kind in (1, 2):
            card.chip.write(chance.randrange(33 - size), size, chance.getrandbits(8 * size))
        elif kind == 3:
            assert card.chip.read(chance.randrange(33 - size), size) >= 0
        elif kind == 4:
            to = chance.choice((MAC, PEER, b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01"))
            sent = frame(to, chance.choice((14, 60, 300, 1514, 9000, 60000)))
            card.chip.has_room(len(sent))
            card.chip.receive(sent)
        else:
            card.outb(0, chance.choice((0x22, 0x26, 0x0A, 0x12, 0x1A)))
        assert len(card.chip.ram) == 0x4000 and all(len(sent) <= 0x4000 for sent in card.sent)
        card.sent.clear()


@pytest.mark.parametrize(("dcr", "size"), [(0x48, 1), (0x49, 2), (0x49, 4)])
def test_a_string_is_what_single_reads_are(running: Card, dcr: int, size: int) -> None:
    running.start(dcr=dcr)
    data = random.Random(2).randbytes(64)
    running.store(0x7FE0, data[:32], size)
    running.store(START << 8, data[32:], size)
    running.remote(0x08, 0x7FE0, 64)
    chip = running.chip
    assert chip.read_string(0x10, size, 64 // size) is None, "round the ring"
    assert chip.read_string(0x10, size, 32 // size) == data[:32]
    running.outb(ISR, 0xFF)
    assert chip.read_string(0x10, size, 32 // size) == data[32:] and running.inb(ISR) == RDC
    assert chip.read_string(0x10, size, 1) is None
    running.remote(0x08, 0x7FE0, 64)
    assert chip.read_string(0x10, 1, 2) == (data[:2] if dcr == 0x48 else None)
