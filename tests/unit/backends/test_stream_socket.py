"""A socket and a device's stream behind it: nothing lost while both are there, who waits for whom, who has gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.backends.sockets import Sockets
from pyvmm.backends.stream_socket import CHUNK, HIGH_WATER, StreamSocket
from pyvmm.backends.unix_socket import LONGEST_PATH
from pyvmm.errors import UserError
from pyvmm.loop import Loop


class End:
    """A device whose stream takes *room* bytes; what it has to write comes unless it is held."""

    def __init__(self) -> None:
        self.output: Callable[[bytes], None] = lambda data: None
        self.on_room: Callable[[], None] | None = None
        self.held = False
        self.listening = True
        self.room = 1 << 30
        self.got = bytearray()
        self.log: list[str] = []
        self.pending = bytearray()

    def receive(self, data: bytes) -> int:
        taken = min(len(data), self.room) if self.listening else 0
        self.got += data[:taken]
        self.room -= taken
        return taken

    def make_room(self, room: int) -> None:
        self.room += room
        if self.on_room is not None:
            self.on_room()

    def listen(self, listening: bool) -> None:
        self.listening = listening
        if listening and self.on_room is not None:
            self.on_room()

    def write(self, data: bytes) -> None:
        self.pending += data
        self._write()

    def _write(self) -> None:
        while self.pending and not self.held:
            piece = bytes(self.pending[:4096])
            del self.pending[:4096]
            self.output(piece)

    def release(self) -> None:
        self.held = False
        self._write()

    def connect(self) -> None:
        self.log.append("connect")

    def hang_up(self) -> None:
        self.log.append("hang up")


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop(nullcontext())
        self.end = End()
        made = Sockets(self.loop).listen(str(path), self.end)
        assert made is not None
        self.stream: StreamSocket = made
        self.clients: list[socket.socket] = []

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self.path))
        client.setblocking(False)
        self.clients.append(client)
        self.turn()
        return client

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.loop.run_once(0)

    def shown(self, client: socket.socket, most: int = 1 << 30) -> bytes:
        data = bytearray()
        while len(data) < most:
            try:
                more = client.recv(min(1 << 16, most - len(data)))
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        return bytes(data)

    def close(self) -> None:
        self.stream.close()
        self.loop.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "socket")
    yield rig
    rig.close()
    assert not (tmp_path / "socket").exists()


def test_both_directions(rig: Rig) -> None:
    rig.end.write(b"nobody hears")
    client = rig.client()
    assert rig.end.log == ["connect"]
    client.send(b"to the guest")
    rig.end.write(b"from the guest")
    rig.turn()
    assert rig.end.got == b"to the guest" and rig.shown(client) == b"from the guest"


def test_a_device_without_room_is_not_drowned(rig: Rig) -> None:
    rig.end.room = 10
    client, text = rig.client(), bytes(range(256)) * 4096
    sent = 0
    for _ in range(50):
        try:
            sent += client.send(text[sent:])
        except BlockingIOError:
            pass
        rig.turn(1)
    assert rig.end.got == text[:10] and sent < len(text)
    while len(rig.end.got) < len(text):
        rig.end.make_room(5000)
        rig.turn(1)
        try:
            sent += client.send(text[sent:])
        except BlockingIOError:
            pass
    assert rig.end.got == text


def test_a_slow_reader_holds_the_device(rig: Rig) -> None:
    client, text = rig.client(), os.urandom(4096) * (4 * HIGH_WATER // 4096)
    rig.end.write(text)
    rig.turn()
    assert rig.end.held and rig.end.pending
    got = b""
    while len(got) < len(text):
        got += rig.shown(client, 10000)
        rig.turn(1)
    assert got == text and not rig.end.held


def test_who_leaves_makes_room_for_the_next(rig: Rig) -> None:
    first, second = rig.client(), rig.client()
    second.send(b"second")
    first.send(b"first, ")
    first.close()
    rig.turn()
    assert rig.end.log == ["connect", "hang up", "connect"]
    rig.turn()
    assert rig.end.got == b"first, second"


def test_what_was_written_before_leaving_is_read_as_there_is_room(rig: Rig) -> None:
    rig.end.room = 3
    client = rig.client()
    client.send(b"0123456789")
    client.close()
    rig.turn()
    assert rig.end.got == b"012" and rig.end.log == ["connect"]
    rig.end.make_room(3)
    assert rig.end.log == ["connect"]
    rig.end.make_room(30)
    rig.turn()
    assert rig.end.got == b"0123456789" and rig.end.log == ["connect", "hang up"]


def test_who_leaves_while_nobody_listens_is_forgotten(rig: Rig) -> None:
    rig.end.listening = False
    client = rig.client()
    client.send(b"for nobody")
    client.close()
    rig.turn()
    assert rig.end.log == ["connect", "hang up"]
    rig.end.listen(True)
    rig.client().send(b"next")
    rig.turn()
    assert rig.end.got == b"next"


def test_half_a_connection_still_gets_answers(rig: Rig) -> None:
    client = rig.client()
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    rig.turn()
    rig.end.write(b"answer")
    rig.turn()
    assert rig.end.got == b"question" and rig.shown(client) == b"answer" and rig.end.log == ["connect"]
    client.close()
    rig.turn()
    assert rig.end.log == ["connect", "hang up"]


def test_a_held_device_goes_on_when_its_reader_has_gone(rig: Rig) -> None:
    client = rig.client()
    rig.end.write(bytes(4 * HIGH_WATER))
    rig.turn()
    assert rig.end.held
    client.close()
    rig.turn()
    assert not rig.end.held and not rig.end.pending


def test_the_loop_rests_when_there_is_nothing_to_do(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.end.room = 0
    client = rig.client()
    client.send(bytes(CHUNK))
    rig.turn()
    woken: list[int] = []
    monkeypatch.setattr(rig.stream, "_flush", lambda: woken.append(1))
    client.close()
    rig.turn(20)
    assert len(woken) <= 2


def test_who_was_connected_before_a_restore_comes_anew(rig: Rig) -> None:
    client = rig.client()
    rig.stream.begin_again()
    rig.turn()
    assert client.recv(1) == b"" and rig.end.log == ["connect", "hang up"]
    rig.stream.begin_again()
    assert rig.end.log[-1] == "hang up"
    rig.client()
    assert rig.end.log[-1] == "connect"


def test_what_cannot_be_a_socket(tmp_path: Path) -> None:
    def refused(path: str | Path) -> str:
        with pytest.raises(UserError) as raised:
            StreamSocket(str(path), Loop(nullcontext()), End())
        return str(raised.value)

    (tmp_path / "file").write_text("kept")
    assert refused("") == "socket:PATH: name the path behind it"
    assert "there is a file of that name: choose another" in refused(tmp_path / "file")
    assert refused(tmp_path / "no" / "folder").endswith(": No such file or directory")
    assert f"more than {LONGEST_PATH} bytes" in refused(tmp_path / ("x" * LONGEST_PATH))
    rig = Rig(tmp_path / "socket")
    assert "another program listens there" in refused(tmp_path / "socket")
    rig.close()
    assert (tmp_path / "file").read_text() == "kept"


def test_a_socket_that_nobody_listens_at_makes_room(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(tmp_path / "socket"))
    left.close()
    rig = Rig(tmp_path / "socket")
    rig.client().send(b"here")
    rig.turn()
    assert rig.end.got == b"here"
    rig.close()


def test_a_machine_that_is_not_to_run_makes_none(tmp_path: Path) -> None:
    assert Sockets(Loop(nullcontext()), look_only=True).listen(str(tmp_path / "socket"), End()) is None
    assert not (tmp_path / "socket").exists()


ACTIONS = st.sampled_from(("send", "write", "room", "listen", "deaf", "connect", "leave", "take", "turn"))


@settings(max_examples=80, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_what_comes_is_a_part_of_what_was_sent_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    rig = Rig(tmp_path_factory.mktemp("s") / "socket")
    rig.end.room = 100
    client: socket.socket | None = None
    sent, written, got = bytearray(), bytearray(), bytearray()
    for number, action in enumerate(actions):
        match action:
            case "send" if client is not None:
                data = bytes([number]) * 70
                client.send(data)
                sent += data
            case "write":
                data = bytes([number]) * 900
                rig.end.write(data)
                written += data
            case "room":
                rig.end.make_room(50)
            case "listen" | "deaf":
                rig.end.listen(action == "listen")
            case "connect" if client is None:
                client = rig.client()
            case "leave" if client is not None:
                client.close()
                client = None
                rig.turn()
            case "take" if client is not None:
                got += rig.shown(client)
            case "turn":
                rig.turn(1)
    rig.end.room = 1 << 30
    rig.end.listen(True)
    rig.turn(8)
    if client is not None:
        got += rig.shown(client)
    assert _is_part(rig.end.got, sent) and _is_part(got, written)
    if "leave" not in actions:
        assert rig.end.got == sent
    if client is not None:
        client.send(b"end")
        rig.turn()
        assert rig.end.got.endswith(b"end")
    rig.close()


def _is_part(part: bytearray, whole: bytearray) -> bool:
    rest = iter(whole)
    return all(byte in rest for byte in part)
