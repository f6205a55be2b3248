"""Several pairs of queues of a network card, and vhost-net that serves them: what is whose at which moment."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.errors import UserError
from tests.rig.net_driver import EVENT_IDX, MAC, LentWire, NetDriver, frame

F_CTRL_VQ, F_MQ = 1 << 17, 1 << 22
MQ = 4, 0


def several(pairs: int, queues: int = 3) -> NetDriver:
    """A card whose driver has asked for *pairs*."""
    card = NetDriver(LentWire(queues), queues=queues)
    assert card.command(*MQ, pairs.to_bytes(2, "little")) == 0
    return card


def wires(card: NetDriver) -> list[LentWire]:
    assert isinstance(card.wire, LentWire)
    return [card.wire, *card.wire.others]


def test_how_many_there_are() -> None:
    card = NetDriver(LentWire(3), queues=3)
    assert card.virtio.offered() & F_MQ and card.config(8, 2) == 3
    assert card.virtio.read(18, 2) == 7
    assert card.networks.asked["queues"] == 3
    assert wires(card)[0].used == 1, "one, until the driver asks for more"
    one = NetDriver(LentWire())
    assert not one.virtio.offered() & F_MQ and one.config(8, 2) == 1 and one.virtio.read(18, 2) == 3


def test_each_pair_has_its_queue_of_the_wire() -> None:
    card = several(3)
    assert wires(card)[0].used == 3
    for pair, wire in enumerate(wires(card)):
        card.send(frame(b"out"), pair=pair)
        assert [data[12:] for data in wire.out] == [frame(b"out")]
        card.offer(2000, pair=pair)
        wire.give(bytes(12) + frame(b"in %d" % pair))
        assert card.frames(pair) == [frame(b"in %d" % pair)]


def test_a_pair_that_is_not_used_gets_nothing() -> None:
    card = several(2)
    assert [wire.receive is not None for wire in wires(card)] == [True, True, False]
    card.virtio.status = 0
    assert wires(card)[0].used == 1 and not any(wire.receive for wire in wires(card))


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0", b"\4\0", b"\1\0\0", b"\xff\xff"])
def test_a_number_of_pairs_that_cannot_be(data: bytes) -> None:
    card = several(2)
    assert card.command(*MQ, data) == 1
    assert card.device.pairs == 2 and wires(card)[0].used == 2


def test_many_commands_at_once_have_the_wire_follow_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue that the kernel attaches or lets go of takes some 0.2 ms."""
    card = several(2)
    asked: list[int] = []
    monkeypatch.setattr(card.wire, "use", asked.append)
    control = card.queues[-1]
    for number in range(30):
        card.ram.write(0x9000 + 4 * number, bytes((*MQ, 1 + number % 3, 0)))
        assert control.add([(0x9000 + 4 * number, 4, False), (0x9800 + number, 1, True)]) is not None
    card.virtio.kick(len(card.queues) - 1)
    assert len(control.used()) == 30 and card.ram.read(0x9800, 30) == bytes(30)
    assert asked == [3] and card.device.pairs == 3
    assert [wire.receive is not None for wire in wires(card)] == [True] * 3


def test_commands_have_one_place_only() -> None:
    card = NetDriver(LentWire(2), queues=2)
    without = card.features & ~F_MQ
    assert not card.virtio.accept(without), "where the queue for commands would be another one"
    assert card.virtio.accept(without & ~F_CTRL_VQ)
    assert card.virtio.accept(card.features)


def test_a_snapshot_knows_how_many_are_used() -> None:
    card = several(2)
    saved = state.save(card.virtio.function)
    other = NetDriver(LentWire(3), queues=3)
    other.ram.write(0, card.ram.read(0, 1 << 20))
    state.load(other.virtio.function, saved)
    assert other.device.pairs == 2 and wires(other)[0].used == 2


# vhost


def served(queues: int = 1) -> NetDriver:
    return NetDriver(LentWire(queues), queues=queues, vhost=True, features=EVENT_IDX)


def test_what_a_card_offers_that_the_kernel_serves() -> None:
    card = served()
    offered = card.virtio.offered()
    assert offered >> 34 & 1 == 0, "no packed ring"
    assert offered >> 15 & 1 and offered >> 29 & 1
    assert card.networks.asked["lend"] is True
    server = card.servers.server
    assert server.running and server.features == 1 << 32 | EVENT_IDX | 1 << 15, "and the offloads are the interface's"
    assert server.backends == [70, 70] and wires(card)[0].lent and wires(card)[0].receive is None


def test_frames_go_by_the_server_alone() -> None:
    card = served()
    for n in range(300):
        card.offer(2000)
        card.send(frame(b"%d" % n))
        card.servers.run()
        assert [data[12:] for data in card.received()] == [frame(b"%d" % n)]
        card.queues[1].used()
    assert card.wire.sent == card.wire.received == 0


def test_commands_are_ours_still() -> None:
    card = served()
    assert card.command(1, 1, b"\x52\x54\x00\x00\x00\x09") == 0
    assert card.mac() == b"\x52\x54\x00\x00\x00\x09" != MAC


def test_without_a_link_nobody_serves() -> None:
    card = served()
    card.device.set_link(False)
    assert not card.servers.server.running and not wires(card)[0].lent and card.status() == 0
    card.device.set_link(True)
    assert card.servers.server.running and wires(card)[0].lent and card.status() == 1
    card.wire.connect(False)
    assert not card.servers.server.running and card.status() == 0


def test_each_pair_that_is_used_has_a_server() -> None:
    card = served(3)
    first, second, third = card.servers.servers
    assert (first.running, second.running, third.running) == (True, False, False)
    assert card.command(*MQ, b"\2\0") == 0
    assert (first.running, second.running, third.running) == (True, True, False)
    assert second.backends == [71, 71]
    card.offer(2000, pair=1)
    card.send(frame(b"by the second"), pair=1)
    card.servers.run()
    assert [data[12:] for data in card.received(1)] == [frame(b"by the second")]
    assert card.command(*MQ, b"\1\0") == 0
    assert (first.running, second.running) == (True, False)


@pytest.mark.parametrize("call", ["features", "num", "backend"])
def test_a_refusal_breaks_the_card_and_not_the_machine(call: str) -> None:
    card = served()
    card.virtio.status = 0
    server = card.servers.server
    server.refuse = call
    card.virtio.setup(card.features)
    assert card.virtio.status & 0x40 and not server.running and not wires(card)[0].lent
    server.refuse = None
    card.virtio.setup(card.features)
    assert server.running


def test_no_server_no_card() -> None:
    class None_:
        def __getattr__(self, name: str) -> object:
            raise UserError("/dev/vhost-net does not exist: as root, modprobe vhost_net")

    wire = LentWire()
    with pytest.raises(UserError, match="modprobe vhost_net"):
        NetDriver(wire, vhost=True, servers=None_())  # type: ignore[arg-type]
    assert wire.closed


def test_the_end() -> None:
    card = served(2)
    card.virtio.board.host.close()
    assert all(server.closed for server in card.servers.servers)
    assert not card.servers.plain and card.wire.closed


ACTIONS = st.sampled_from(
    ("send", "serve", "serve one", "take", "rest", "go on", "down", "up", "no master", "master", "reset", "save")
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_nothing_is_lost_or_comes_twice(actions: list[str]) -> None:
    card = served()
    (offload,) = card.servers.resting
    server = card.servers.server
    got: list[bytes] = []
    sent = 0
    master = up = going = True

    def take() -> None:
        got.extend(data[26:] for data in card.received())
        card.queues[1].used()

    for action in actions:
        match action:
            case "send" if card.queues[1].free and card.queues[0].free:  # type: ignore[union-attr]
                card.offer(100)
                card.send(frame(b"%d" % sent))
                sent += 1
            case "serve":
                card.servers.run()
            case "serve one":
                server.serve(1)
            case "take":
                take()
            case "rest" | "go on":
                going = action == "go on"
                (offload.go_on if going else offload.rest)()
            case "down" | "up":
                up = action == "up"
                card.device.set_link(up)
            case "no master" | "master":
                master = action == "master"
                card.virtio.config.write(4, 2, 6 if master else 2)
            case "reset":
                card.virtio.config.write(4, 2, 6)
                master = True
                card.virtio.status = 0
                assert not server.running
                card.queues[:] = card.virtio.setup(card.features)
                got, sent = [], 0
                card.given.clear()
            case "save" if not going:
                saved = state.save(card.virtio.function)
                state.load(card.virtio.function, saved)
        assert server.running == (master and up and going), action
        assert wires(card)[0].lent == server.running
    card.virtio.config.write(4, 2, 6)
    offload.go_on()
    card.device.set_link(True)
    for _ in range(1000):
        take()
        if len(got) == sent:
            break
        card.servers.run()
    assert got == [b"%d" % number for number in range(sent)]
    card.servers.close()
