"""The virtio console of users: hvc0, ports on sockets and in Python's hands, what the driver hears of them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.backends.sockets import Sockets
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.machine.registry import help_text
from pyvmm.virtio.console import MAX_MESSAGES, SIZE
from pyvmm.virtio.console_ports import ConsolePorts
from pyvmm.virtio.device import RING_FEATURES
from tests.rig.console_driver import ADD, MULTIPORT, NAME, OPEN, PORT_READY, READY, VERSION_1, ConsoleDriver
from tests.rig.devices import made

F_SIZE, EMERG_WRITE = 1 << 0, 1 << 2
CONSOLE_PORT, RESIZE = 4, 5


class Guest(ConsoleDriver):
    """With a driver that knows all ports; *words* are those of the device."""

    def __init__(self, features: int = VERSION_1 | MULTIPORT | F_SIZE, **words: object) -> None:
        self.loop = Loop(nullcontext())
        self.ports = ConsolePorts(Sockets(self.loop), **words)  # type: ignore[arg-type]
        super().__init__(features & self.ports.features, device=self.ports)

    def control(self) -> list[tuple[int, int, int, bytes]]:
        """All of it: the driver has room for eight at a time."""
        messages: list[tuple[int, int, int, bytes]] = []
        while more := super().control():
            messages += more
        return messages

    def ready(self) -> None:
        """As Linux does: it knows all ports, and hears of them."""
        self.say(0xFFFFFFFF, READY, 1)
        self.control()
        for port in self.ports.ports:
            self.say(port.number, PORT_READY, 1)

    def turn(self) -> None:
        for _ in range(4):
            self.loop.run_once(0)
            self.virtio.board.run_later()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def guest(path: Path) -> Iterator[Guest]:
    guest = Guest(console="terminal", port={"tap": "", "org.example.0": f"socket:{path}"})
    yield guest
    guest.virtio.board.host.close()
    assert not path.exists()
    guest.loop.close()


def test_what_the_driver_finds(guest: Guest) -> None:
    assert guest.virtio.offered() == RING_FEATURES | MULTIPORT | F_SIZE | EMERG_WRITE
    assert guest.virtio.read(0x3004, 4) == 3 and guest.virtio.read(18, 2) == 8
    guest.say(0xFFFFFFFF, READY, 1)
    assert [message[:3] for message in guest.control()] == [(0, ADD, 1), (1, ADD, 1), (2, ADD, 1)]
    guest.say(0, PORT_READY, 1)
    assert guest.control() == [
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, SIZE.pack(80, 25)),
        (0, NAME, 1, b"console"),
        (0, OPEN, 1, b""),
    ]
    guest.say(1, PORT_READY, 1)
    assert guest.control() == [(1, NAME, 1, b"tap"), (1, OPEN, 1, b"")]
    guest.say(2, PORT_READY, 1)
    assert guest.control() == [(2, NAME, 1, b"org.example.0"), (2, OPEN, 0, b"")]


def test_ports_alone_have_no_size() -> None:
    guest = Guest(port={"a": ""})
    assert guest.virtio.offered() == RING_FEATURES | MULTIPORT
    assert guest.ports.terminal is None and guest.ports.get("b") is None
    with pytest.raises(KeyError):
        guest.ports["b"]


def test_a_program_comes_and_goes(guest: Guest, path: Path) -> None:
    guest.ready()
    guest.control()
    guest.say(2, OPEN, 1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.send(b"question")
        guest.turn()
        assert guest.control() == [(2, OPEN, 1, b"")]
        assert guest.received(6) == [b"question"]
        guest.send(7, b"answer")
        guest.turn()
        assert client.recv(100) == b"answer"
        # The next reset of the driver finds it connected.
        guest.ports.reset()
        assert guest.ports.port("org.example.0").host_open
    guest.turn()
    assert not guest.ports.port("org.example.0").host_open


def test_a_tap(guest: Guest) -> None:
    guest.ready()
    heard: list[bytes] = []
    tap = guest.ports["tap"]
    handle = tap.add(heard.append)
    tap.write(b"x" * 1000)
    guest.turn()
    assert guest.received(4) == [] and not tap.guest_open
    guest.say(1, OPEN, 1)
    assert tap.guest_open
    assert b"".join(guest.received(4, room=8)) == b"x" * 512
    assert b"".join(guest.received(4, room=8)) == b"x" * 488
    guest.send(5, b"from the guest")
    assert heard == [b"from the guest"]
    tap.hang_up()
    tap.write(b"for who comes next")
    guest.turn()
    assert guest.received(4, room=1) == []
    tap.connect()
    guest.turn()
    assert guest.received(4, room=1) == [b"for who comes next"]
    handle.remove()
    guest.send(5, b"more")
    assert heard == [b"from the guest"]
    guest.control()
    tap.hang_up()
    guest.turn()
    assert guest.control() == [(1, OPEN, 0, b"")]
    tap.connect()
    guest.turn()
    assert guest.control() == [(1, OPEN, 1, b"")]


def test_who_comes_before_the_last_was_read_is_announced_anew(guest: Guest) -> None:
    guest.ready()
    guest.say(1, OPEN, 1)
    guest.control()
    tap = guest.ports["tap"]
    tap.write(b"unread")
    tap.hang_up()
    tap.connect()
    guest.turn()
    assert guest.control() == [(1, OPEN, 0, b""), (1, OPEN, 1, b"")]


def test_a_driver_that_does_not_listen_has_two_messages_of_a_port_at_most(guest: Guest) -> None:
    guest.ready()
    guest.received(2)  # it takes none from here on
    tap = guest.ports["tap"]
    for _ in range(500):
        tap.hang_up()
        tap.connect()
        guest.turn()
    assert len(guest.ports.messages) <= 12
    tap.hang_up()
    guest.turn()
    last = [message for message in guest.ports.messages if struct.unpack_from("<IH", message) == (1, OPEN)]
    assert [struct.unpack("<IHH", message)[2] for message in last] == [1, 0]


def test_the_size_of_the_terminal(guest: Guest) -> None:
    guest.ports.resize(100, 30)
    assert guest.virtio.read(0x3000, 4) == 30 << 16 | 100
    generation = guest.virtio.read(21, 1)
    guest.ready()
    assert (0, RESIZE, 0, SIZE.pack(100, 30)) in guest.control()
    guest.ports.resize(120, 40)
    guest.ports.resize(120, 40)
    assert guest.control() == [(0, RESIZE, 0, SIZE.pack(120, 40))]
    assert guest.virtio.read(21, 1) == generation + 1
    guest.received(2)
    for columns in range(500):
        guest.ports.resize(columns, 25)
    assert len(guest.ports.messages) < 12


def test_an_emergency_needs_no_queue(guest: Guest) -> None:
    guest.virtio.status = 0
    said: list[bytes] = []
    assert guest.ports.terminal is not None
    guest.ports.terminal.output = said.append
    for char in b"dead":
        guest.virtio.write(0x3008, 4, char)
    assert b"".join(said) == b"dead"
    guest.ports.terminal.held = True
    guest.virtio.write(0x3008, 4, ord("x"))
    assert b"".join(said) == b"dead", "a reader that reads nothing costs no memory"
    guest.virtio.write(0x3000, 4, 0)
    assert guest.virtio.read(0x3000, 2) == 80


def test_a_driver_that_knows_one_port() -> None:
    """Without F_MULTIPORT there are no messages: queues 0 and 1 are the console."""
    guest = Guest(VERSION_1, console="terminal")
    port = guest.ports.terminal
    assert port is not None and port.listening
    assert port.receive(b"typed") == 5 and guest.received(0) == [b"typed"]
    guest.send(1, b"shown")
    assert guest.got["console"] == b"shown"
    guest.virtio.status = 0
    assert not port.listening


def test_after_a_restore_who_was_connected_is_not(guest: Guest, path: Path) -> None:
    guest.ready()
    guest.say(2, OPEN, 1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        guest.turn()
        guest.control()
        saved = state.save(guest.virtio.function)
        guest.ports["tap"].write(b"never taken")
        guest.turn()
        state.load(guest.virtio.function, saved)
        guest.turn()
        assert client.recv(1) == b""
        assert guest.control() == [(2, OPEN, 0, b"")]
    guest.say(1, OPEN, 1)
    assert guest.received(4) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("virtio-console,console=window", "console=window: it is terminal, or socket:PATH"),
        ("virtio-console,port.a=file:x", "port.a=file:x: it is port.a=socket:PATH, or port.a alone"),
        ("virtio-console,port.a/b", "port.a/b: a port's name is of letters, digits, '.', '_' and '-'"),
        ("virtio-console,console=terminal,port.console", "port.console: a port's name"),
        ("virtio-console,port.a=socket:", "socket:PATH: name the path behind it"),
        ("virtio-console,port.a=socket:/no/such/x", "socket /no/such/x: No such file or directory"),
        ("virtio-console,ports.a", "virtio-console has no key ports.a: it has console, port.NAME"),
        ("virtio-console,port.", "'port.' is no KEY=VALUE"),
        ("virtio-console,port.a,port.a", "port.a is there twice"),
        ("virtio-console" + "".join(f",port.{n}" for n in range(32)), "32 ports: it has at most 31"),
    ],
)
def test_mistakes_are_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as raised:
        made(text)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_socket_that_fails_takes_the_others_away(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        made(f"virtio-console,port.a=socket:{tmp_path}/a,port.b=socket:{tmp_path}/no/b")
    assert not (tmp_path / "a").exists()


def test_help_says_how_ports_are_written() -> None:
    assert "  port.NAME[=TEXT]" in list(help_text(DeviceSpec("virtio-console")))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)),
            st.tuples(st.just("write"), st.integers(0, 0x300C), st.sampled_from((1, 2, 4)), st.integers(0, 2**32 - 1)),
            st.tuples(st.sampled_from(("tap", "leave", "come", "size", "save")), st.just(0), st.just(0), st.just(0)),
        ),
        max_size=60,
    )
)
def test_whatever_a_guest_says(actions: list[tuple[str, int, int, int]]) -> None:
    guest = Guest(console="terminal", port={"tap": ""})
    for action, one, two, three in actions:
        match action:
            case "say" if guest.virtio.status == 15 and guest.queues[3].free:  # type: ignore[union-attr]
                guest.say(one, two, three)
            case "write":
                guest.virtio.write(one & -two, two, three & ((1 << 8 * two) - 1))
            case "tap":
                guest.ports["tap"].write(b"text")
            case "leave":
                guest.ports["tap"].hang_up()
            case "come":
                guest.ports["tap"].connect()
            case "size":
                guest.ports.resize(one, 25)
            case "save":
                state.load(guest.virtio.function, state.save(guest.virtio.function))
        guest.turn()
    assert len(guest.ports.messages) <= MAX_MESSAGES + 12
    guest.loop.close()
