"""The ways that an ATA disk's commands and an NE2000's frames take, said by the chips, whatever a guest does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.timeline.flows import NO_LINKS, Flows, Links
from pyvmm.devices.ata import AtaDrive
from pyvmm.devices.ata_channel import AtaChannel
from pyvmm.devices.dp8390 import PORTS, Dp8390
from pyvmm.irq import LevelIrq
from pyvmm.trace import Step, Trace
from tests.rig.ata_driver import NIEN, SECTOR, AtaDriver, FakeMedium

READ_SECTORS, WRITE_SECTORS = 0x20, 0x30
COUNT, LBA_LOW, DEVICE, COMMAND, STATUS = 2, 3, 6, 7, 7
LBA = 0xE0
CURR, RCR_PROMISCUOUS = 0x47, 0x10


class Cards:
    """A disk and a network card whose messages go into Flows."""

    def __init__(self) -> None:
        self.flows = Flows()
        self.seen: list[tuple[str, Links]] = []
        """(channel, its links) of each message that is on a way."""
        trace = Trace()
        trace.listen(self._hear)
        irq = trace.channel("irq")

        def line(number: int) -> LevelIrq:
            return LevelIrq(lambda level: irq(f"IRQ {number} {level}", ("irq", number, int(level))))

        self.channel = AtaChannel(line(14))
        self.channel.attach(AtaDrive(FakeMedium(64), "a model", "serial", "1.2", trace.channel("ata")))
        self.disk = AtaDriver(self.channel)
        self.sent: list[bytes] = []
        self.card = Dp8390(b"\x52\x54\x00\x12\x34\x56", line(11), self.sent.append, trace=trace.channel("ne2k"))

    def _hear(self, ns: int, channel: str, message: str, step: Step | None) -> None:
        links = self.flows.links(channel, step)
        if links != NO_LINKS:
            self.seen.append((channel, links))

    def command(self, code: int, sectors: int) -> None:
        for register, value in ((COUNT, sectors), (LBA_LOW, 1), (DEVICE, LBA), (COMMAND, code)):
            self.disk.outb(register, value)

    def answer(self) -> None:
        """What a handler does."""
        self.disk.inb(STATUS)


def test_a_read_of_three_sectors_goes_on_over_its_interrupts() -> None:
    cards = Cards()
    cards.command(READ_SECTORS, 3)
    for _ in range(3):
        cards.answer()
        for _ in range(SECTOR // 2):
            cards.channel.command_block.read(0, 2)
    *way, (channel, last) = cards.seen
    assert all(links == Links((1,)) for _, links in way)
    assert [channel for channel, _ in way].count("irq") == 3
    assert (channel, last) == ("ata", Links(ending=(1,)))


def test_a_write_ends_with_the_status_behind_its_last_interrupt() -> None:
    cards = Cards()
    cards.command(WRITE_SECTORS, 2)
    for _ in range(2):
        assert cards.seen[-1][1].through == (1,)
        for _ in range(SECTOR // 2):
            cards.channel.command_block.write(0, 2, 0x4141)
        cards.answer()
    assert cards.seen[-1] == ("ata", Links(ending=(1,)))


def test_a_driver_that_polls_needs_no_interrupt() -> None:
    cards = Cards()
    cards.channel.control_block.write(0, 1, NIEN)
    cards.command(READ_SECTORS, 1)
    for _ in range(SECTOR // 2):
        cards.channel.command_block.read(0, 2)
    assert cards.seen == [("ata", Links((1,))), ("ata", Links(ending=(1,)))]


BYTE = st.integers(0, 255)
ACCESS = st.one_of(
    st.tuples(st.just("disk"), st.integers(0, 7), st.sampled_from([1, READ_SECTORS, WRITE_SECTORS, LBA, 0xEC, 0x90])),
    st.tuples(st.just("disk reads"), st.integers(1, 7), BYTE),
    st.tuples(st.just("data"), st.integers(0, 1), BYTE),
    st.tuples(st.just("control"), st.just(0), BYTE),
    st.tuples(st.just("card"), st.integers(0, PORTS - 1), BYTE),
    st.tuples(st.just("card reads"), st.integers(0, PORTS - 1), BYTE),
    st.tuples(st.just("frame"), st.integers(14, 1514), BYTE),
)


@given(st.lists(ACCESS, max_size=80))
def test_whatever_a_guest_does_what_has_ended_does_not_go_on(accesses: list[tuple[str, int, int]]) -> None:
    cards = Cards()
    card = cards.card
    card.pstart, card.pstop, card.bnry, card.curr, card.rcr, card.cr = 0x46, 0x80, 0x46, CURR, RCR_PROMISCUOUS, 0x22
    for what, at, value in accesses:
        match what:
            case "disk":
                cards.disk.outb(at, value)
            case "disk reads":
                cards.disk.inb(at)
            case "data":
                for _ in range(SECTOR // 2):
                    if at:
                        cards.channel.command_block.write(0, 2, value)
                    else:
                        cards.channel.command_block.read(0, 2)
            case "control":
                cards.channel.control_block.write(0, 1, value)
            case "card":
                card.write(at, 1, value)
            case "card reads":
                card.read(at, 2)
            case _:
                card.receive(bytes([value]) * at)
    ended = set[int]()
    for _, links in cards.seen:
        assert not ended.intersection(links.through + links.ending)
        ended.update(links.ending)
