"""Wires to this host: what comes out at the other end, what is dropped, what a mistake says."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends import tap
from pyvmm.backends.cable import BURST
from pyvmm.backends.networks import HostNetworks
from pyvmm.backends.passt import Forward, parse_forwards
from pyvmm.backends.pcap import Dump
from pyvmm.backends.stream import MAX_UNSENT
from pyvmm.backends.wire import MAX_FRAME, Carrier, LendingWire, OffloadWire, QueuedWire, Wire
from pyvmm.clock import GuestClock
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.units import MIB


class Rig:
    """Networks with a loop, which the test turns."""

    def __init__(self) -> None:
        self.loop = Loop(threading.RLock())
        self.clock = GuestClock(self.loop)
        self.lines: list[str] = []
        self.networks = HostNetworks(self.loop, self.clock, lambda: self.clock.stands, self.lines.append)

    def turn(self, times: int = 5) -> None:
        for _ in range(times):
            self.loop.run_once(0)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.loop.run_once(0.05)

    def close(self) -> None:
        self.networks.close()
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


class Card:
    """Listens to a wire, and has room for as many frames as it says."""

    def __init__(self, wire: Wire, room: int = 1 << 30) -> None:
        self.wire, self.room = wire, room
        self.frames: list[bytes] = []
        self.batches: list[int] = []
        """How many frames had come whenever the wire had no more."""
        wire.listen(self.receive, lambda: self.batches.append(len(self.frames)))

    def receive(self, frame: bytes) -> bool:
        if self.room:
            self.room -= 1
            self.frames.append(frame)
            return True
        return False


def frames(*lengths: int) -> list[bytes]:
    return [bytes((n + length) & 0xFF for n in range(length)) for length in lengths]


def framed(*whole: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "big") + one for one in whole)


@pytest.mark.parametrize("kind", ["socket", "user", "tap"])
def test_where_no_descriptor_is_left_nothing_of_the_network_is_blamed(rig: Rig, path: Path, kind: str) -> None:
    """Whoever makes the machine says it, with the limit."""
    to = f"socket:{path}" if kind == "socket" else kind
    with contextlib.suppress(UserError):
        rig.networks.open(to).close()  # what is imported then is there
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            rig.networks.open(to)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Unix sockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wire"


def connected(wire: Wire) -> bool:
    assert isinstance(wire, Carrier)
    return wire.connected


def test_two_on_one_wire(rig: Rig, path: Path) -> None:
    first, second = (rig.networks.open(f"socket:{path}") for _ in range(2))
    rig.turn()
    assert connected(first) and connected(second)
    left, right = Card(first), Card(second)
    sent = frames(14, 60, 1514, MAX_FRAME)
    for one in sent:
        first.send(one)
        second.send(memoryview(one))
    rig.until(lambda: len(left.frames) == len(right.frames) == 4)
    assert left.frames == right.frames == sent
    assert (first.sent, first.received, first.dropped) == (4, 4, 0)
    for length in (0, 13, MAX_FRAME + 1):
        first.send(bytes(length))
    assert (first.sent, first.dropped) == (4, 3)


def test_frames_that_others_follow_go_out_together(rig: Rig, path: Path) -> None:
    first, second = (rig.networks.open(f"socket:{path}") for _ in range(2))
    rig.turn()
    card = Card(second)
    sent = frames(60, 61, 62)
    for one in sent[:2]:
        first.send(one, more=True)
    for _ in range(5):
        rig.turn()
    assert not card.frames
    first.send(sent[2])
    rig.until(lambda: card.frames == sent)
    many = frames(*[MAX_FRAME] * 3)
    for one in many:
        first.send(one, more=True)  # more than what waits
    rig.until(lambda: card.frames == sent + many)
    assert (first.sent, first.dropped) == (6, 0)


def test_who_comes_first_waits_and_who_stays_waits_again(rig: Rig, path: Path) -> None:
    first = rig.networks.open(f"socket:{path}")
    changes: list[bool] = []
    assert isinstance(first, Carrier) and not first.connected
    first.link_changed = lambda: changes.append(connected(first))
    first.send(bytes(60))
    assert first.dropped == 1
    for _ in range(2):
        other = rig.networks.open(f"socket:{path}")
        rig.turn()
        other.close()
        rig.turn()
    assert changes == [True, False] * 2
    assert rig.lines == [f"net socket:{path}: the other end has gone: the guest's link is down"] * 2
    last = rig.networks.open(f"socket:{path}")
    rig.turn()
    first.close()
    rig.turn()
    assert not path.exists() or path.is_socket()
    again = rig.networks.open(f"socket:{path}")  # it finds the one that had connected before
    rig.turn()
    assert connected(last) and connected(again)
    last.close()
    again.close()
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_taken(rig: Rig, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    assert not connected(rig.networks.open(f"socket:{path}"))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(os.fspath(path))
    peer.close()


def test_a_third_at_a_wire_waits_and_a_fourth_is_told(rig: Rig, path: Path) -> None:
    first = rig.networks.open(f"socket:{path}")
    for _ in range(2):
        rig.networks.open(f"socket:{path}")
        rig.turn()
    with pytest.raises(UserError, match="there are two at this wire already"):
        for _ in range(3):
            rig.networks.open(f"socket:{path}")
    assert connected(first)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_third_at_a_wire_has_its_turn_when_one_goes(rig: Rig, path: Path, gone: int) -> None:
    """The first, which listens, or the second."""
    wires = []
    for _ in range(3):
        wires.append(rig.networks.open(f"socket:{path}"))
        rig.turn()
    wires.pop(gone).close()
    cards = [Card(wire) for wire in wires]
    rig.turn(20)
    assert all(map(connected, wires)) and path.is_socket()
    for sender, card in zip(wires, reversed(cards), strict=True):
        sender.send(bytes(60))
        rig.until(lambda card=card: card.frames == [bytes(60)])  # type: ignore[misc]
    wires[0].close()
    again = rig.networks.open(f"socket:{path}")
    rig.turn(20)
    assert connected(wires[1]) and connected(again)


def test_who_takes_nobody_is_not_asked_for_ever(rig: Rig, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        wire = rig.networks.open(f"socket:{path}")
        listener.settimeout(0)
        came = 0
        for _ in range(50):
            try:
                listener.accept()[0].close()
                came += 1
            except BlockingIOError:
                pass
            rig.turn(1)
    assert came < 10 and len(rig.lines) < 10 and not connected(wire)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder/wire", "No such file or directory: name a socket in a folder that you may write to"),
        ("file", "that is no socket: name another"),
        ("x" * 200, "AF_UNIX path too long: name another"),
    ],
)
def test_places_where_no_socket_can_be(rig: Rig, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match=said) as error:
        rig.networks.open(f"socket:{tmp_path / name}")
    assert "\n" not in str(error.value) and (tmp_path / "file").read_text() == "a file"


class Peer:
    """The other end of a socket wire, by hand."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self.wire = rig.networks.open(f"socket:{path}")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.fspath(path))
        rig.turn()
        self.socket.setblocking(False)

    def read(self) -> bytes:
        data = b""
        while select.select([self.socket], [], [], 0)[0]:
            data += self.socket.recv(1 << 20)
        return data


def test_a_frame_may_come_in_pieces(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    card = Card(peer.wire)
    sent = frames(60, 100, 14)
    for byte in framed(*sent):
        peer.socket.send(bytes((byte,)))
        rig.turn(1)
    assert card.frames == sent
    peer.socket.send(framed(*frames(0, 13, 60)))
    rig.turn()
    assert card.frames == [*sent, *frames(60)] and peer.wire.dropped == 2


@given(st.lists(st.integers(0, 3000), max_size=20), st.lists(st.integers(1, 4000), max_size=40))
def test_any_frames_in_any_pieces(lengths: list[int], cuts: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rig = Rig()
        peer = Peer(rig, Path(folder) / "wire")
        card = Card(peer.wire)
        sent = frames(*lengths)
        data = framed(*sent)
        while data:
            cut = cuts.pop() if cuts else len(data)
            peer.socket.send(data[:cut])
            data = data[cut:]
            rig.turn(2)
        rig.turn(3)
        assert card.frames == [one for one in sent if len(one) >= 14]
        peer.socket.close()
        rig.close()


@given(st.binary(max_size=200))
def test_whatever_a_partner_sends(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rig = Rig()
        peer = Peer(rig, Path(folder) / "wire")
        card = Card(peer.wire)
        peer.socket.send(data)
        rig.turn()
        assert all(14 <= len(one) <= MAX_FRAME for one in card.frames)
        peer.socket.close()
        rig.turn()
        assert not connected(peer.wire) and len(rig.lines) == 1
        rig.close()


def test_nonsense_ends_the_connection_and_another_may_come(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    Card(peer.wire)
    peer.socket.send(b"GET / HTTP/1.1\r\n\r\n")
    rig.turn()
    assert not connected(peer.wire)
    assert rig.lines == [
        f"net socket:{path}: the other end sends what is no frame (1195725856 bytes): the guest's link is down"
    ]
    with socket.socket(socket.AF_UNIX) as another:
        another.connect(os.fspath(path))
        rig.turn()
        assert connected(peer.wire)


def test_a_partner_that_reads_nothing_loses_frames_and_nobody_waits(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    sent = [n.to_bytes(2, "big") * 700 for n in range(4000)]
    for one in sent:
        peer.wire.send(one)
    took = peer.wire.sent
    assert 0 < took < 4000 and peer.wire.dropped == 4000 - took
    assert peer.wire._pending.size <= MAX_UNSENT  # type: ignore[attr-defined]
    data = b""
    while len(data) < len(framed(*sent[:took])):
        data += peer.read()
        rig.turn(1)
    assert data == framed(*sent[:took]), "what was taken is whole"
    peer.wire.send(sent[0])
    assert peer.read() == framed(sent[0])


def test_without_room_nothing_is_read_and_nothing_lost(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    card = Card(peer.wire, room=3)
    sent = frames(*(100 + n for n in range(3 * BURST)))
    peer.socket.send(framed(*sent))
    rig.turn()
    assert card.frames == sent[:3]
    for room in (1, 0, 5, BURST + 1, 1000):
        card.room = room
        peer.wire.ready()
        rig.turn()
    assert card.frames == sent and peer.wire.received == len(sent) and peer.wire.dropped == 0


def test_the_card_hears_when_it_has_what_came_together(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    card = Card(peer.wire, room=2)
    peer.socket.send(framed(*frames(60, 61, 62, 63)))
    rig.turn()
    assert card.batches[-1] == 2, "and no room for more"
    card.batches.clear()
    card.room = 2
    peer.wire.ready()
    rig.turn()
    assert card.batches == [3, 4]


def test_while_nobody_listens_frames_are_lost(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    peer.socket.send(framed(*frames(60, 61)))
    rig.turn()
    assert peer.wire.dropped == 2
    card = Card(peer.wire, room=0)
    peer.socket.send(framed(*frames(62)))
    rig.turn()
    peer.wire.listen(None)
    assert peer.wire.dropped == 3 and card.frames == []


def test_while_the_machine_stands_nothing_comes(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    card = Card(peer.wire)
    rig.clock.stop()
    sent = frames(60, 61, 62)
    peer.socket.send(framed(*sent))
    rig.turn()
    peer.wire.ready()
    assert card.frames == []
    rig.clock.set(0)  # as a snapshot does that goes back
    rig.clock.go()
    rig.until(lambda: card.frames == sent)


def test_room_that_comes_while_the_machine_stands_is_not_forgotten(rig: Rig, path: Path) -> None:
    peer = Peer(rig, path)
    card = Card(peer.wire, room=1)
    sent = frames(60, 61, 62)
    peer.socket.send(framed(*sent))
    rig.turn()
    rig.clock.stop()
    card.room = 10
    peer.wire.ready()
    assert card.frames == sent[:1]
    rig.clock.go()
    rig.until(lambda: card.frames == sent)


# TAP interfaces, with a socket in the kernel's place


class FakeTap:
    """What kvm_cffi.tun.TapInterface is, on a pair of sockets."""

    refuse: OSError | None = None
    allowed = True

    def __init__(self, name: str = "", *, headers: bool = False, queues: bool = False) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.name, self.headers, self.several = name or "tap3", headers, queues
        self.attached: list[bool] = []
        self.is_there = True
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.fd = ours.detach()
        self.offloads: list[int] = []
        self.mtu, self.is_up = 1500, False

    def set_offload(self, flags: int) -> None:
        self.offloads.append(flags)

    def set_attached(self, attached: bool) -> None:
        self.attached.append(attached)

    def _change(self) -> None:
        if not self.allowed:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    def set_mtu(self, mtu: int) -> None:
        self._change()
        self.mtu = mtu

    def set_up(self) -> None:
        self._change()
        self.is_up = True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.kernel.close()


@pytest.fixture
def fake_tap(monkeypatch: pytest.MonkeyPatch) -> type[FakeTap]:
    class Own(FakeTap):
        pass

    monkeypatch.setattr(tap, "TapInterface", Own)
    return Own


def test_frames_and_headers_of_a_tap(rig: Rig, fake_tap: type[FakeTap]) -> None:
    wire = rig.networks.open("tap", headers=True, mtu=9000)
    kernel = wire._tap  # type: ignore[attr-defined]
    assert (kernel.headers, kernel.mtu, kernel.is_up) == (True, 9000, True)
    card = Card(wire)
    wire.send(bytes(12) + frames(60)[0])
    assert kernel.kernel.recv(1 << 17) == bytes(12) + frames(60)[0]
    kernel.kernel.send(bytes(12) + frames(61)[0])
    rig.turn()
    assert card.frames == [bytes(12) + frames(61)[0]]
    wire.send(bytes(12 + 13))
    assert wire.dropped == 1
    plain = rig.networks.open("tap")
    assert not isinstance(plain, OffloadWire)
    plain.send(frames(60)[0])
    assert plain._tap.kernel.recv(1 << 17) == frames(60)[0]  # type: ignore[attr-defined]


def test_what_the_kernel_is_told_that_a_driver_takes(rig: Rig, fake_tap: type[FakeTap]) -> None:
    wire = rig.networks.open("tap", headers=True)
    assert isinstance(wire, OffloadWire)
    csum, tso4, tso6, ecn = 1 << 1, 1 << 7, 1 << 8, 1 << 9
    for features in (0, csum, tso4 | tso6, csum | tso4, csum | ecn, wire.offloads, (1 << 64) - 1):
        wire.offload(features)
    assert wire._tap.offloads == [0, 1, 0, 3, 1, 15, 15]  # type: ignore[attr-defined]


def test_queues_of_a_tap_are_attached_as_they_are_used(rig: Rig, fake_tap: type[FakeTap]) -> None:
    wire = rig.networks.open("tap", headers=True, queues=3)
    assert isinstance(wire, QueuedWire)
    taps: list[FakeTap] = [one._tap for one in (wire, *wire.others)]  # type: ignore[attr-defined]
    assert all(one.several for one in taps) and {one.name for one in taps} == {"tap3"}
    for count in (2, 2, 3, 1):
        wire.use(count)
    assert [one.attached for one in taps] == [[], [False, True, False], [False, True, False]]
    got: list[bytes] = []
    for one in (wire, *wire.others):
        one.listen(lambda frame: got.append(frame) or True)  # type: ignore[func-returns-value]
    taps[1].kernel.send(bytes(12) + frames(60)[0])
    rig.turn()
    assert got == [], "nobody reads one that is not attached: that is an error"
    wire.use(2)
    rig.turn()
    assert got == [bytes(12) + frames(60)[0]]
    wire.others[0].send(bytes(12) + frames(61)[0])
    assert taps[1].kernel.recv(1 << 17) == bytes(12) + frames(61)[0]
    assert not rig.networks.open("tap", headers=True)._tap.several  # type: ignore[attr-defined]


def test_a_tap_that_is_lent_is_left_alone_and_seen_to_go(rig: Rig, fake_tap: type[FakeTap]) -> None:
    wire = rig.networks.open("tap", headers=True, lend=True)
    assert isinstance(wire, LendingWire) and isinstance(wire, Carrier)
    got: list[bytes] = []
    wire.listen(lambda frame: got.append(frame) or True)  # type: ignore[func-returns-value]
    kernel = wire._tap  # type: ignore[attr-defined]
    for _ in range(2):
        assert wire.lend() == kernel.fd
        kernel.kernel.send(bytes(12) + frames(60)[0])
        rig.turn()
        assert got == []
        wire.take_back()
        rig.turn()
        assert got == [bytes(12) + frames(60)[0]]
        got.clear()
    wire.lend()
    wire._changes._ready()  # type: ignore[attr-defined]
    assert wire.connected, "another interface has changed"
    kernel.is_there = False
    wire._changes._ready()  # type: ignore[attr-defined]
    assert not wire.connected and rig.lines == ["net tap,name=tap3: the interface has gone: the guest's link is down"]
    with pytest.raises(OSError, match="the interface has gone"):
        wire.lend()
    wire.take_back()


def test_a_tap_that_takes_no_more_drops(rig: Rig, fake_tap: type[FakeTap]) -> None:
    wire = rig.networks.open("tap")
    for _ in range(3000):
        wire.send(bytes(1514))
    assert 0 < wire.sent < 3000 and wire.dropped == 3000 - wire.sent


def test_a_tap_that_goes_takes_the_link_down(
    rig: Rig, fake_tap: type[FakeTap], monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = rig.networks.open("tap", name="tap0")

    def gone(fd: int, length: int) -> bytes:
        raise OSError(errno.EBADFD, "File descriptor in bad state")

    wire._tap.kernel.send(bytes(60))  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "read", gone)
    rig.loop._callbacks[wire._fd][1]()  # type: ignore[attr-defined]
    assert rig.lines == ["net tap,name=tap0: the interface has gone: the guest's link is down"]
    assert not connected(wire)
    wire.send(bytes(60))
    assert wire.dropped == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOENT, "x", "/dev/net/tun"), "there is no /dev/net/tun on this host: as root, modprobe tun"),
        (OSError(errno.EACCES, "Permission denied", "/dev/net/tun"), "Permission denied: you must be allowed to"),
        (OSError(errno.EPERM, "x"), "it is not yours: as root, ip tuntap add tap0 mode tap user"),
        (OSError(errno.EBUSY, "x"), "another program has it: name one that is free"),
        (OSError(errno.EINVAL, "x"), "there is an interface of this name that is no tap of one queue"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_a_tap_that_cannot_be_had(rig: Rig, fake_tap: type[FakeTap], error: OSError, said: str) -> None:
    fake_tap.refuse = error
    with pytest.raises(UserError, match=f"^net tap,name=tap0: .*{said}"):
        rig.networks.open("tap", name="tap0")


def test_a_tap_that_may_not_be_changed(rig: Rig, fake_tap: type[FakeTap]) -> None:
    fake_tap.allowed = False
    with pytest.raises(UserError, match="it is down: Operation not permitted: as root, ip link set tap0 up"):
        rig.networks.open("tap", name="tap0")
    with pytest.raises(UserError, match=r"its MTU is 1500: .*: as root, ip link set tap0 mtu 9000"):
        rig.networks.open("tap", name="tap0", mtu=9000)


@pytest.mark.parametrize("name", ["", "x" * 16, "a/b", "a b", "%d", "é" * 8])
def test_names_that_no_interface_has(rig: Rig, name: str) -> None:
    with pytest.raises(UserError, match="an interface's name has 1 to 15 characters"):
        rig.networks.open("tap", name=name)


# passt, with a script in its place

PASST = """#!/bin/bash
while [ "$1" != -F ]; do shift; done
fd=$2; shift 2
echo "$@" >{record}
{body}
"""


@pytest.fixture
def passt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def make(body: str) -> Path:
        record, program = tmp_path / "arguments", tmp_path / "bin" / "passt"
        program.parent.mkdir()
        program.write_text(PASST.format(record=record, body=body))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return record

    return make


def test_passt_gets_one_end_and_what_to_forward(rig: Rig, passt: Callable[[str], Path]) -> None:
    record = passt('eval "(cat <&$fd >&$fd) >/dev/null 2>&1 &"; exit 0')
    wire = rig.networks.open("user", forward="tcp:42222:22+udp:127.0.0.2:45353:53", mtu=1400)
    assert record.read_text().split() == [*["-t", "127.0.0.1/42222:22", "-u", "127.0.0.2/45353:53", "-m", "1400"]]
    card = Card(wire)
    wire.send(bytes(60))
    rig.until(lambda: bool(card.frames))
    assert card.frames == [bytes(60)] and connected(wire)


def test_passt_gets_more_time_than_a_partner_on_a_socket(rig: Rig, passt: Callable[[str], Path]) -> None:
    """A whole window of a connection is held for it."""
    passt('eval "sleep 20 >/dev/null 2>&1 &"; exit 0')
    wire = rig.networks.open("user")
    for _ in range(6 * MIB // 1514):
        wire.send(bytes(1514))
    assert wire.dropped == 0
    for _ in range(6 * MIB // 1514):
        wire.send(bytes(1514))
    assert wire.dropped > 0


def test_a_passt_that_ends_takes_the_link_down(rig: Rig, passt: Callable[[str], Path]) -> None:
    passt("exit 0")
    wire = rig.networks.open("user")
    rig.turn()
    assert not connected(wire) and rig.lines == ["net user: passt has ended: the guest's link is down"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo why >&2; echo 'Failed to send 9 bytes to syslog' >&2; exit 1", "why"),
        ("echo 'External interface not usable' >&2; exit 1", "no interface of this host has a default route"),
        ("exit 3", "exit status 3"),
        ("printf 'a\\033[31mb\\n' >&2; exit 1", r"a\\x1b\[31mb"),
    ],
)
def test_a_passt_that_does_not_start(rig: Rig, passt: Callable[[str], Path], body: str, said: str) -> None:
    passt(body)
    with pytest.raises(UserError, match=f"^net user: passt does not start: {said}"):
        rig.networks.open("user")


def test_no_passt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^net user: there is no passt on this host: apt-get install passt"):
        rig.networks.open("user")


def test_forwards() -> None:
    assert parse_forwards("tcp:2222:22+udp:0.0.0.0:5353:53") == [
        Forward("tcp", "127.0.0.1", 2222, 22),
        Forward("udp", "0.0.0.0", 5353, 53),
    ]
    for text in ("", "2222:22", "tcp:22", "tcp:a:22", "tcp:0:22", "tcp:65536:22", "tcp:x:1:2", "icmp:1:2", "tcp:1:2+"):
        with pytest.raises(ValueError, match=r"."):
            parse_forwards(text)


def test_a_port_that_is_taken(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        with pytest.raises(UserError, match=f"tcp port {port} of 127.0.0.1 cannot be had: Address already in use"):
            rig.networks.open("user", forward=f"tcp:{port}:22")


# Words, and the dump


@pytest.mark.parametrize(
    ("to", "words", "said"),
    [
        ("", {}, "there is no such network: there are: user, tap, socket:PATH"),
        ("usr", {}, "there is no such network: did you mean user?"),
        ("socket", {}, "there is no such network"),
        ("socket:", {}, "there is no such network"),
        ("user:x", {}, "there is no such network"),
        ("user", {"name": "tap0"}, "name= is of a tap: leave it away"),
        ("tap", {"forward": "tcp:1:2"}, "forward= is of user: leave it away"),
        ("user", {"queues": 2}, "queues= is of a tap: leave it away"),
        ("user", {"lend": True}, "vhost is of a tap: leave it away"),
        ("tap", {"queues": 0}, "queues=0: it is 1 to 16"),
        ("tap", {"lend": True, "dump": Path("x")}, "dump= shows no frames that vhost carries"),
        ("user", {"mtu": 67}, "mtu=67: it is 68 to 65535"),
        ("user", {"mtu": 65536}, "mtu=65536: it is 68 to 65535"),
        ("user", {"dump": Path("/nowhere/x")}, "dump=/nowhere/x: No such file or directory"),
    ],
)
def test_words_that_do_not_go_together(rig: Rig, to: str, words: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        rig.networks.open(to, **words)  # type: ignore[arg-type]
    assert said in str(error.value) and str(error.value).startswith("net ")


def test_nothing_is_opened_to_look() -> None:
    loop = Loop(threading.RLock())
    networks = HostNetworks(loop, loop, lambda: False, lambda line: None, look_only=True)
    wire = networks.open("tap", name="tap0", dump=Path("/nowhere/x"))
    wire.send(bytes(60))
    assert wire.dropped == 1
    networks.close()
    loop.close()


def test_a_dump_has_what_goes_through(rig: Rig, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    wire = rig.networks.open(f"socket:{path}", dump=file)
    other = rig.networks.open(f"socket:{path}")
    rig.turn()
    card = Card(wire, room=1)
    other.send(frames(60)[0])
    wire.send(frames(70)[0])
    other.send(frames(80)[0])
    rig.turn()
    wire.close()
    assert card.frames == frames(60)
    data = file.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    found, at = [], 24
    while at < len(data):
        _, ns, length, whole = struct.unpack_from("<IIII", data, at)
        assert ns < 10**9 and length == whole
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    assert sorted(found, key=len) == frames(60, 70), "not what the card did not take"


def test_a_dump_has_at_once_what_nobody_answers(rig: Rig, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    wire = rig.networks.open(f"socket:{path}", dump=file)
    rig.networks.open(f"socket:{path}")
    rig.turn()
    wire.send(frames(70)[0], more=True)
    wire.send(frames(80)[0])
    assert len(file.read_bytes()) == 24 + 2 * 16 + sum(map(len, frames(70, 80)))


def test_a_dump_on_a_full_disk_ends_and_is_told_of(rig: Rig, path: Path) -> None:
    wire = rig.networks.open(f"socket:{path}", dump=Path("/dev/null"))
    other = rig.networks.open(f"socket:{path}")
    rig.turn()
    full = Dump(Path("/dev/null"))
    full._file.close()
    full._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    wire._dump = full  # type: ignore[attr-defined]
    for _ in range(3):
        wire.send(bytes(60))
    assert rig.lines == [f"net socket:{path}: /dev/null: No space left on device: no more frames are written there"]
    card = Card(other)
    rig.turn()
    assert len(card.frames) == 3
