"""virtio-net: frames both ways, what the driver asks for, and what becomes of them when the link or the buffers are not
there."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.backends.mac import parse_mac
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory
from pyvmm.virtio.net import CONTROL, LONG, MAX_PIECES, RECEIVE, TRANSMIT, VirtioNet
from pyvmm.virtio.net_filter import MAX_ADDRESSES
from tests.rig.net_driver import (
    EVENT_IDX,
    INDIRECT,
    MAC,
    PACKED,
    PEER,
    FakeOffloadWire,
    FakeWire,
    NetDriver,
    OneWire,
    frame,
)
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_driver import fill_in_c

RAM = GuestMemory.of_size(0x1000)
MRG_RXBUF, CTRL_RX, ANNOUNCE = 1 << 15, 1 << 18, 1 << 21
MULTICAST = b"\x01\x00\x5e\x00\x00\x01"
OTHER = b"\x52\x54\x00\x99\x99\x99"
BROADCAST = b"\xff" * 6
ALL = [BROADCAST, MULTICAST, MAC, OTHER]


def bits(features: int) -> set[int]:
    return {n for n in range(24) if features >> n & 1}


def test_identity_and_configuration() -> None:
    card = NetDriver(mtu=9000, name="tap7", forward="x", dump=None)
    config = card.virtio.config
    assert (config.read(0, 2), config.read(2, 2), config.read(8, 4) >> 8) == (0x1AF4, 0x1041, 0x020000)
    assert bits(card.virtio.offered()) == {3, 5, 15, 16, 17, 18, 20, 21, 23}
    assert card.mac() == MAC
    assert (card.status(), card.config(8, 2), card.config(10, 2)) == (1, 1, 9000)
    words = {"to": "user", "headers": True, "name": "tap7", "forward": "x", "mtu": 9000, "dump": None}
    assert card.networks.asked == words | {"queues": 1, "lend": False}
    assert 3 not in bits(NetDriver().virtio.offered())


@pytest.mark.parametrize("features", [0, PACKED])
@pytest.mark.parametrize("fills", [False, True])
def test_the_driver_is_interrupted_once_for_what_comes_together_and_for_each_long_frame(
    features: int, fills: bool
) -> None:
    wire = FakeWire()
    card = NetDriver(wire, features=features)
    fill_in_c(card.ram, fills)
    card.virtio.msix()
    for _ in range(60):
        card.offer(4096, kick=False)
    for length, interrupts in ((60, 1), (1500, 1), (LONG, 3)):
        given = [frame(length + n) for n in range(3)]
        wire.waiting += given
        wire.ready()
        assert card.frames() == given
        assert len(card.virtio.messages) == interrupts


def test_the_wire_hears_which_frame_of_a_kick_is_the_last() -> None:
    wire = FakeWire()
    card = NetDriver(wire)
    card.send(frame(60))
    assert wire.more == [False]
    queue = card.queues[TRANSMIT]
    card.ram.write(0x200000, bytes(12) + frame(100))
    for _ in range(3):
        assert queue.add([(0x200000, 12 + 114, False)]) is not None
    card.virtio.kick(TRANSMIT)
    assert wire.more == [False, True, True, False]
    assert wire.out[1:] == [frame(100)] * 3


def test_a_wire_that_offloads_says_what_it_can_and_hears_what_is_taken() -> None:
    wire = FakeOffloadWire()
    card = NetDriver(wire, without=1 << 7)
    assert {0, 1, 7, 11} <= bits(card.virtio.offered())
    assert wire.taken[-1] == 1 << 0 | 1 << 1 | 1 << 11
    card.virtio.status = 0
    assert wire.taken[-1] == 0
    assert wire.receive is None


def test_addresses() -> None:
    assert parse_mac("52:54:00:aB:cD:eF") == b"\x52\x54\x00\xab\xcd\xef"
    for text in ("", "52:54:00:12:34", "52-54-00-12-34-56", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x" * 17):
        with pytest.raises(UserError, match=r"^net user: mac="):
            NetDriver(mac=text)
    first, second = (VirtioNet("user", OneWire(FakeWire()), FakeVhost(RAM)).mac for _ in range(2))
    assert first != second and first[:3] == second[:3] == b"\x52\x54\x00"


@pytest.mark.parametrize("features", [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX | INDIRECT])
@pytest.mark.parametrize("without", [0, MRG_RXBUF])
def test_frames_both_ways(features: int, without: int) -> None:
    card = NetDriver(features=features, without=without, size=64)
    for _ in range(20):
        card.offer(2000)
    for size in range(46, 1501, 100):
        card.wire.give(frame(size))
    got = card.frames()
    assert got == [frame(size) for size in range(46, 1501, 100)]
    assert card.virtio.read(0x2000, 1) == 1 and card.wire.received == len(got)
    for pieces in (1, 2, 7):
        card.send(frame(100, PEER), pieces)
    assert card.wire.out == [frame(100, PEER)] * 3
    assert len(card.queues[TRANSMIT].used()) == 3


def test_what_goes_out_is_a_frame_or_is_dropped() -> None:
    card = NetDriver()
    for size in (0, 11, 12, 25):
        card.send(b"", header=bytes(size))
    card.send(bytes(14))
    card.send(bytes(14 + 65535), 3)
    card.send(bytes(14 + 65536), 3)
    assert [len(one) for one in card.wire.out] == [14, 14 + 65535] and card.wire.dropped == 5
    assert card.virtio.status == 15 and len(card.queues[TRANSMIT].used()) == 7


def test_the_header_goes_over_a_wire_that_wants_it() -> None:
    wire = FakeOffloadWire()
    card = NetDriver(wire)
    header = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0)
    card.send(frame(80, PEER), header=header)
    assert wire.out == [header + frame(80, PEER)]
    card.offer(2000)
    wire.give(header + frame(70))
    assert card.received() == [header[:10] + b"\1\0" + frame(70)]


def test_a_driver_that_takes_no_checksums_hears_nothing_of_them() -> None:
    wire = FakeOffloadWire()
    card = NetDriver(wire, without=1 << 1 | 1 << 7)
    card.offer(2000)
    wire.give(struct.pack("<BBHHHHH", 2, 0, 0, 0, 0, 0, 0) + frame(70))  # VIRTIO_NET_HDR_F_DATA_VALID
    assert card.received() == [bytes(10) + b"\1\0" + frame(70)]


def test_a_frame_fills_as_many_buffers_as_it_needs() -> None:
    card = NetDriver()
    for _ in range(4):
        card.offer(600)
    card.wire.give(frame(1400))
    assert card.wire.waiting == []
    buffers = card.received()
    assert [len(one) for one in buffers] == [600, 600, 12 + 14 + 1400 - 1200]
    assert buffers[0][10:12] == b"\3\0" and b"".join(buffers)[12:] == frame(1400)


def test_without_room_the_wire_waits_and_nothing_is_lost() -> None:
    card = NetDriver(features=EVENT_IDX)
    card.offer(1000)
    for number in range(3):
        card.wire.give(frame(1400 + number))
    assert len(card.wire.waiting) == 3 and card.received() == []
    while card.wire.waiting:
        card.offer(1000, kick=False)
        assert card.queues[RECEIVE].needs_kick(), "the card asks for a kick while a frame waits"
        card.virtio.kick(RECEIVE)
    assert card.frames() == [frame(1400), frame(1401), frame(1402)] and card.wire.dropped == 0


def test_a_frame_that_the_driver_can_never_hold_is_dropped() -> None:
    card = NetDriver(without=MRG_RXBUF)
    card.offer(100)
    card.wire.give(frame(1000))
    card.wire.give(frame(60))
    assert card.frames() == [frame(60)] and card.wire.dropped == 1
    card = NetDriver(size=4)
    for _ in range(4):
        card.offer(100)
    card.wire.give(frame(1000))
    card.wire.give(frame(120))
    assert card.frames() == [frame(120)] and card.wire.dropped == 1


def test_a_frame_in_very_many_pieces_is_dropped() -> None:
    card = NetDriver(features=INDIRECT, size=64)
    for _ in range(20):
        buffers = [(0x100000 + n, 1, True) for n in range(100)]
        assert card.queues[RECEIVE].add(buffers, indirect_at=0x90000) is not None
    for _ in range(10):
        card.virtio.kick(RECEIVE)
        card.wire.give(frame(1900))
    assert card.wire.dropped == 10 and card.virtio.status == 15
    assert sum(chain.descriptors for chain in card.device.queues[RECEIVE]._held) < MAX_PIECES + 100


def test_nobody_gets_a_frame_before_the_driver_is_there() -> None:
    wire = FakeWire()
    VirtioNet("user", OneWire(wire), FakeVhost(RAM))
    assert wire.receive is None
    card = NetDriver(wire)
    assert wire.receive is not None
    card.virtio.status = 0
    assert wire.receive is None


def test_link_down_and_up() -> None:
    card = NetDriver()
    card.offer(2000)
    for change in (card.device.set_link, card.wire.connect):
        assert card.status() == 1
        before = card.virtio.read(0x15, 1)
        change(False)
        assert card.status() == 0 and card.virtio.read(0x15, 1) == before + 1
        assert card.virtio.read(0x2000, 1) & 2
        card.send(frame(60, PEER))
        change(True)
    assert card.wire.out == [] and card.wire.dropped == 2 and card.status() == 1
    card.device.set_link(False)
    card.wire.give(frame(60))
    assert card.frames() == [] and card.wire.waiting == []
    card.virtio.status = 0
    assert card.status() == 0, "a reset does not put the cable in again"


def arrived(card: NetDriver) -> list[bytes]:
    """Which of ALL come through."""
    for to in ALL:
        card.offer(200)
        card.wire.give(frame(60, to))
    return [one[:6] for one in card.frames()]


def table(*addresses: bytes) -> bytes:
    return len(addresses).to_bytes(4, "little") + b"".join(addresses)


def test_which_frames_come_through() -> None:
    card = NetDriver()
    assert arrived(card) == ALL, "all, until the driver says something"
    assert card.command(0, 0, b"\0") == 0
    assert arrived(card) == [BROADCAST, MAC]
    assert card.command(1, 0, table(OTHER) + table(MULTICAST)) == 0
    assert arrived(card) == ALL
    assert card.command(1, 0, table() + table()) == 0
    for command, through in (
        (1, [BROADCAST, MULTICAST, MAC]),
        (2, [BROADCAST, MAC, OTHER]),
        (3, [BROADCAST, MAC]),
        (4, [BROADCAST]),
        (5, [MAC]),
    ):
        assert card.command(0, command, b"\1") == 0
        assert arrived(card) == through
        assert card.command(0, command, b"\0") == 0
    many = table(*(b"\x02\0\0\0" + n.to_bytes(2, "big") for n in range(MAX_ADDRESSES + 1)))
    assert card.command(1, 0, many + table()) == 0
    assert arrived(card) == [BROADCAST, MAC, OTHER]
    card.virtio.status = 0
    card.queues = card.virtio.setup(card.features)
    assert arrived(card) == ALL


def test_the_driver_sets_its_address_until_a_reset() -> None:
    card = NetDriver()
    assert card.command(1, 1, OTHER) == 0 and card.mac() == OTHER
    assert card.command(0, 0, b"\0") == 0
    assert arrived(card) == [BROADCAST, OTHER]
    assert card.command(1, 1, MULTICAST) == 1 and card.device.mac == OTHER
    card.virtio.status = 0
    assert card.mac() == MAC


@pytest.mark.parametrize(
    ("kind", "command", "data"),
    [
        (0, 0, b""),
        (0, 0, b"\1\1"),
        (0, 6, b"\1"),
        (0, 255, b"\1"),
        (1, 0, b""),
        (1, 0, table()),
        (1, 0, b"\xff\xff\xff\xff"),
        (1, 0, table() + b"\2\0\0\0" + OTHER),
        (1, 1, OTHER[:5]),
        (2, 0, b"\1\0"),
        (4, 0, b"\2\0"),
        (0xFF, 0xFF, b""),
        (0, 0, bytes(70000)),
    ],
)
def test_commands_that_are_refused(kind: int, command: int, data: bytes) -> None:
    card = NetDriver()
    before = state.save(card.device)
    assert card.command(kind, command, data) == 1
    assert card.virtio.status == 15
    after = state.save(card.device)
    assert isinstance(before, dict) and isinstance(after, dict)
    assert before["filter"] == after["filter"] and before["mac"] == after["mac"]


def test_commands_that_were_not_negotiated() -> None:
    card = NetDriver(without=CTRL_RX | 1 << 23 | ANNOUNCE)
    assert [card.command(0, 0, b"\0"), card.command(1, 1, OTHER), card.command(3, 0)] == [1, 1, 1]


def test_a_command_without_room_for_its_answer_breaks_the_device() -> None:
    card = NetDriver()
    card.queues[CONTROL].add([(0x100000, 3, False)])
    card.virtio.kick(CONTROL)
    assert card.virtio.status & 0x40
    card.queues = card.virtio.setup(card.features)
    assert card.command(0, 0, b"\0") == 0


def test_one_that_is_restored_elsewhere_tells_the_network() -> None:
    card, twin = NetDriver(), NetDriver(mac=None, home=b"there")
    card.command(0, 0, b"\0")
    saved = state.save(card.virtio.function)
    twin.ram.write(0x10000, card.ram.read(0x10000, 0x10000))  # its rings
    state.load(card.virtio.function, saved)
    card.virtio.board.run_later()
    assert card.status() == 1, "here nothing has moved"
    twin.wire.connected = False
    state.load(twin.virtio.function, saved)
    twin.virtio.board.run_later()
    assert twin.mac() == MAC and not twin.device.filter.modes
    assert twin.status() == 2, "it is asked to announce itself, and the link is what it is here"
    twin.wire.connect(True)
    assert twin.status() == 3 and twin.wire.receive is not None
    twin.queues = card.queues
    twin.queues[CONTROL].memory = twin.ram
    assert twin.command(3, 0) == 0 and twin.status() == 1


def test_one_whose_driver_cannot_announce_is_not_asked_to() -> None:
    card, twin = NetDriver(without=ANNOUNCE), NetDriver(without=ANNOUNCE, home=b"there")
    state.load(twin.virtio.function, state.save(card.virtio.function))
    twin.virtio.board.run_later()
    assert twin.status() == 1


def test_more_than_a_turn_goes_on_by_and_by() -> None:
    """A driver that fills both rings is served in pieces: others come in between."""
    card = NetDriver()
    for _ in range(200):
        card.offer(200, kick=False)
    for number in range(200):
        card.wire.waiting.append(frame(64 + number % 100))
    card.virtio.kick(RECEIVE)
    assert 0 < card.wire.received < 200
    card.virtio.board.run_later()
    assert card.frames() == [frame(64 + number % 100) for number in range(200)]


@given(st.lists(st.tuples(st.booleans(), st.integers(14, 3000)), max_size=60), st.data())
def test_any_traffic_comes_through_in_order(traffic: list[tuple[bool, int]], data: st.DataObject) -> None:
    """Buffers of any size, offered whenever: nothing is lost, and nothing is changed."""
    features = data.draw(st.sampled_from([0, EVENT_IDX, PACKED, PACKED | EVENT_IDX]))
    card = NetDriver(features=features, size=32)
    expected, sent, got = [], [], []
    for number, (outwards, size) in enumerate(traffic):
        one = (MAC if not outwards else PEER) + bytes((n * number + 1) & 0xFF for n in range(size - 6))
        if outwards:
            card.send(one, data.draw(st.integers(1, 4)))
            sent.append(one)
            assert len(card.queues[TRANSMIT].used()) == 1
        else:
            card.wire.give(one)
            expected.append(one)
        for length in data.draw(st.lists(st.integers(12, 2000), max_size=3)):
            if len(card.given) < 31:
                card.offer(length)
    while card.wire.waiting:
        got += card.frames()
        card.offer(1500)
        card.virtio.board.run_later()
    got += card.frames()
    assert card.wire.out == sent
    assert card.wire.dropped or got == expected
    left = iter(expected)
    assert all(one in left for one in got), "in their order"
    assert len(got) + card.wire.dropped == len(expected)
