"""Network cards in whole machines: what a pause, a snapshot, a reset and the end make of them, and what is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.units import MIB
from tests.rig.board import SPIN, Board
from tests.rig.net_driver import BUFFERS, MAC, PEER, NetDriver, frame


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "code").write_bytes(bytes.fromhex(SPIN))
    return tmp_path / "wire"


def made(path: Path, words: str = "") -> Board:
    """A machine with a card on the socket *path*, and a guest that only counts."""
    device = f"virtio-net,to=socket:{path},mac=52:54:00:12:34:56{words}"
    config = MachineConfig(memory=16 * MIB, kernel=path.parent / "code", flat="real@0x1000", devices=(device,))
    return Board(config)


def driver(machine: Board, buffers: int = 4) -> NetDriver:
    def make() -> NetDriver:
        card = NetDriver.of_machine(machine)
        for _ in range(buffers):
            card.offer(1526)
        return card

    return machine.call(make)


def received(machine: Board, card: NetDriver, count: int) -> list[bytes]:
    """The next frames, when so many have come."""
    found: list[bytes] = []

    def look() -> bool:
        found.extend(card.frames())
        return len(found) >= count

    assert machine.wait(look, timeout=60)
    return found


class Peer:
    """At the other end of a machine's wire."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.fspath(path))

    def send(self, data: bytes) -> None:
        self.socket.sendall(len(data).to_bytes(4, "big") + data)

    def read(self) -> bytes:
        length = int.from_bytes(self.socket.recv(4, socket.MSG_WAITALL), "big")
        return self.socket.recv(length, socket.MSG_WAITALL)


def test_two_machines_on_one_wire(path: Path) -> None:
    with made(path) as first, made(path, f",dump={path}.pcap") as second:
        first.start()
        second.start()
        left, right = driver(first), driver(second)
        assert first.wait(lambda: left.status() == 1)
        first.call(lambda: left.send(frame(500, PEER), 3))
        assert received(second, right, 1) == [frame(500, PEER)]
        second.call(lambda: right.send(frame(1500, MAC)))
        assert received(first, left, 1) == [frame(1500, MAC)]
        second.close()
        assert first.wait(lambda: left.status() == 0), "the link is down"
        assert Path(f"{path}.pcap").stat().st_size == 24 + 2 * (16 + 14) + 2000
    assert not path.exists()


def test_what_comes_while_the_machine_stands_comes_when_it_goes_on(path: Path) -> None:
    with made(path) as machine:
        machine.start()
        peer, card = Peer(path), driver(machine)
        assert machine.wait(lambda: card.status() == 1)
        with machine.paused():
            peer.send(frame(100))
            before = machine.memory.read(BUFFERS, MIB)
            for _ in range(5):
                machine.call(lambda: None)
            assert machine.memory.read(BUFFERS, MIB) == before
        assert received(machine, card, 1) == [frame(100)]


def test_back_to_a_snapshot_and_on_in_another_machine(path: Path) -> None:
    with made(path) as machine:
        machine.start()
        peer, card = Peer(path), driver(machine, buffers=0)
        assert machine.wait(lambda: card.status() == 1)
        snapshot = machine.snapshot()
        for size in (100, 200):
            machine.restore(snapshot)
            card = driver(machine)
            peer.send(frame(size))
            assert received(machine, card, 1) == [frame(size)]
            machine.call(partial(card.send, frame(60, PEER)))
            assert peer.read() == frame(60, PEER)
        snapshot.save(path.parent / "saved")
    with Board.restored(path.parent / "saved") as machine:
        machine.start()
        peer = Peer(path)
        assert machine.wait(lambda: bool(machine.board.devices["virtio-net"].config[6] & 1))  # type: ignore[attr-defined]
        card = driver(machine)
        assert card.mac() == MAC
        peer.send(frame(300))
        assert received(machine, card, 1) == [frame(300)]


def test_a_reset_leaves_the_wire_and_loses_the_driver(path: Path) -> None:
    with made(path) as machine:
        machine.start()
        peer, card = Peer(path), driver(machine)
        assert machine.wait(lambda: card.status() == 1)
        machine.reset()
        peer.send(frame(100))
        wire = card.device.wire
        assert machine.wait(lambda: wire.dropped == 1), "nobody listens"
        card = driver(machine)
        peer.send(frame(200))
        assert received(machine, card, 1) == [frame(200)]


def test_a_peer_that_goes_is_one_line_and_the_machine_lives(path: Path) -> None:
    with made(path) as machine:
        lines: list[str] = []
        machine.events.add(lambda event: lines.append(event.message) if event.kind == "io-error" else None)
        machine.start()
        for turn in range(1, 4):
            peer, card = Peer(path), driver(machine)
            assert machine.wait(lambda card=card: card.status() == 1)  # type: ignore[misc]
            peer.socket.close()
            assert machine.wait(lambda card=card: card.status() == 0)  # type: ignore[misc]
            assert lines == [f"net socket:{path}: the other end has gone: the guest's link is down"] * turn
        assert machine.state == "running"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("usr",), "--net usr: there is no such network: did you mean user?"),
        (("socket:/nowhere/wire",), "--net socket:/nowhere/wire: No such file or directory: name a socket in"),
        (("user,forward=tcp:22",), "--net user: forward: 'tcp:22' is no forward: write tcp:2222:22"),
        (("user,mac=01:00:00:00:00:00",), "--net user: mac=01:00:00:00:00:00: that is no address of one card"),
        (("tap,name=a-name-that-is-too-long",), "--net tap,name=a-name-that-is-too-long: an interface's name has"),
        (("user,speed=9",), "--net user,speed=9: virtio-net has no key speed: it has to, mac, mtu, name, queues,"),
        (("socket:x,dump=/nowhere/x",), "--net socket:x: dump=/nowhere/x: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], said: str) -> None:
    options = [option for word in words for option in ("--net", word)]
    ran = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "hello", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"pyvmm: {said}") and ran.stderr.count("\n") == 1, ran.stderr
