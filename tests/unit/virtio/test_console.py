"""virtio-console with ports: control messages, both directions, who waits for whom, and what is behind the end."""

from __future__ import annotations

import struct

import pytest

from pyvmm.virtio.console import MAX_MESSAGES, RING, VirtioConsole
from pyvmm.virtio.device import RING_FEATURES
from tests.rig.console_driver import (
    ADD,
    DATA,
    ELSEWHERE,
    MULTIPORT,
    NAME,
    OPEN,
    PORT_READY,
    READY,
    VERSION_1,
    ConsoleDriver,
)

EVENT_IDX = 1 << 29
ALL = [VERSION_1 | MULTIPORT, VERSION_1 | MULTIPORT | EVENT_IDX, RING_FEATURES | MULTIPORT]


def test_what_the_driver_finds() -> None:
    guest = ConsoleDriver()
    assert guest.virtio.config.read(2, 2) == 0x1043 and guest.virtio.config.read(0xB, 1) == 7
    assert guest.virtio.offered() == RING_FEATURES | MULTIPORT
    assert guest.virtio.read(0x3004, 4) == 2
    assert guest.virtio.read(18, 2) == 6


def test_ports_are_announced_and_named() -> None:
    guest = ConsoleDriver()
    guest.say(0xFFFFFFFF, READY, 1)
    assert guest.control() == [(0, ADD, 1, b""), (1, ADD, 1, b"")]
    guest.say(1, PORT_READY, 1)
    assert guest.control() == [(1, NAME, 1, b"out"), (1, OPEN, 1, b"")]
    for port, event, value in ((2, PORT_READY, 1), (0, PORT_READY, 0), (0xFFFFFFFF, READY, 0), (0, 99, 1)):
        guest.say(port, event, value)
    guest.send(3, b"short")
    assert guest.control() == []


@pytest.mark.parametrize("features", ALL)
def test_output_comes_as_it_was_written(features: int) -> None:
    guest = ConsoleDriver(features)
    guest.open("out")
    index = guest.device.port("out").transmitq.index
    for number in range(3 * RING):
        guest.send(index, bytes([number]) * (number % 50 + 1))
    assert guest.got["out"] == b"".join(bytes([number]) * (number % 50 + 1) for number in range(3 * RING))


def test_a_slow_reader_leaves_it_in_the_ring() -> None:
    guest = ConsoleDriver()
    port = guest.open("out")

    def slowly(data: bytes) -> None:
        guest.got["out"] += data
        port.held = True

    port.output = slowly
    for data in (b"one", b"two", b"three"):
        guest.ram.write(guest.next, data)
        assert guest.queues[port.transmitq.index].add([(guest.next, len(data), False)]) is not None
        guest.next += 0x100
        guest.virtio.kick(port.transmitq.index)
    assert guest.got["out"] == b"one" and not port.drained
    port.release()
    assert guest.got["out"] == b"onetwo"
    port.release()
    port.release()
    assert guest.got["out"] == b"onetwothree" and port.drained


def test_what_was_written_before_is_taken_before() -> None:
    """Kicks of two ports may come in any order: what is in the first ring is taken first."""
    guest = ConsoleDriver(names=("out", "status"))
    seen: list[str] = []
    for port in guest.device.ports:
        guest.open(port.name)
        port.output = lambda data, name=port.name: seen.append(name)  # type: ignore[misc]
        assert guest.queues[port.transmitq.index].add([(DATA, 4, False)]) is not None
    guest.virtio.kick(guest.device.port("status").transmitq.index)
    assert seen == ["out", "status"]


@pytest.mark.parametrize("features", ALL)
def test_input_waits_for_who_opens_it_and_for_room(features: int) -> None:
    guest = ConsoleDriver(features)
    port, rooms = guest.device.port("in"), []
    assert port.receive(b"early") == 0 and not port.listening
    port.on_room = lambda: rooms.append(1)
    guest.open("in")
    assert port.listening and rooms == [1]
    text = bytes(range(256)) * 4
    done = port.receive(text)
    assert done == 8 * 64 and port.receive(text[done:]) == 0
    assert b"".join(guest.received(0, room=5)) == text[:done]
    assert len(rooms) > 1
    done += port.receive(text[done:])
    assert done == 13 * 64
    assert b"".join(guest.received(0, room=8)) == text[8 * 64 : done]
    assert port.receive(b"") == 0


@pytest.mark.parametrize("features", ALL)
def test_the_end_comes_after_the_last_was_read(features: int) -> None:
    guest = ConsoleDriver(features)
    port = guest.open("in")
    assert port.receive(b"abc") == 3 and port.receive(b"def") == 3
    port.hang_up()
    assert guest.control() == [] and port.receive(b"late") == 0
    assert guest.received(0, room=1) == [b"abc", b"def"]
    assert guest.control() == []
    guest.make_room(0)
    guest.kick(0)
    assert guest.control() == [(0, OPEN, 0, b"")]
    guest.kick(0)
    assert guest.control() == []


def test_the_end_of_an_input_that_nobody_has_opened() -> None:
    guest = ConsoleDriver()
    port = guest.device.port("in")
    port.hang_up()
    guest.say(0, PORT_READY, 1)
    assert guest.control()[1] == (0, OPEN, 1, b"")
    guest.say(0, OPEN, 1)
    assert guest.control() == [(0, OPEN, 0, b"")]


def test_a_driver_that_begins_again_hears_of_the_end_again() -> None:
    guest = ConsoleDriver()
    port = guest.open("in")
    port.hang_up()
    assert not port.host_open
    guest.virtio.status = 0
    assert not port.listening and port.host_open and port.closing
    guest.device.reset()
    guest.queues = guest.virtio.setup(VERSION_1 | MULTIPORT)
    guest.place.clear()
    for _ in range(4):
        guest.make_room(2)
    guest.say(0, OPEN, 1)
    assert guest.control() == [(0, OPEN, 0, b"")]


def test_a_driver_that_asks_and_does_not_listen_waits() -> None:
    guest = ConsoleDriver()
    for _ in range(8 * MAX_MESSAGES):
        guest.queues[3].add([(ELSEWHERE, 8, False)])
    guest.ram.write(ELSEWHERE, struct.pack("<IHH", 0, PORT_READY, 1))
    for _ in range(5):
        guest.virtio.kick(3)
        guest.virtio.board.run_later()
        for _ in range(len(guest.queues[3].used())):
            guest.queues[3].add([(ELSEWHERE, 8, False)])
    assert MAX_MESSAGES <= len(guest.device.messages) <= MAX_MESSAGES + 2
    assert len(guest.control()) == 8
    assert MAX_MESSAGES <= len(guest.device.messages) <= MAX_MESSAGES + 2


def test_a_port_that_nobody_is_tied_to() -> None:
    device = VirtioConsole(("a",))
    assert device.port("a").receive(b"x") == 0
    device.port("a").output(b"lost")
    device.port("a").hang_up()
    device.port("a").release()
