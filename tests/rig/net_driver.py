"""A guest's driver of virtio-net, as a model; and a wire that a test holds the other end of."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Self

from pyvmm.backends.stream import LENGTH
from pyvmm.backends.wire import VNET_HEADER, Wire
from pyvmm.machine.machine import Machine
from pyvmm.testing.pci import Board
from pyvmm.virtio.net import RECEIVE, TRANSMIT, VirtioNet
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_driver import Driver, Virtio

VERSION_1, EVENT_IDX, INDIRECT, PACKED = 1 << 32, 1 << 29, 1 << 28, 1 << 34
MAC = b"\x52\x54\x00\x12\x34\x56"
PEER = b"\x52\x54\x00\x00\x00\x01"
BUFFERS = 0x100000
"""Where buffers lie in RAM, each in a room of its own."""
ROOM = 0x1000


def frame(payload: bytes | int = b"", to: bytes = MAC) -> bytes:
    """A whole frame; *payload* may be a length."""
    body = payload if isinstance(payload, bytes) else bytes(n & 0xFF for n in range(payload))
    return to + PEER + b"\x88\xb5" + body


class FakeWire:
    """Keeps what is sent, and gives what it is told, as a Wire must."""

    def __init__(self) -> None:
        self.sent = self.received = self.dropped = 0
        self.out: list[bytes] = []
        self.more: list[bool] = []
        """Of each of these, whether another was to come at once."""
        self.waiting: list[bytes] = []
        """What there was no room for yet."""
        self.receive: Callable[[bytes], bool] | None = None
        self.caught_up: Callable[[], None] | None = None
        self.connected = True
        self.link_changed: Callable[[], None] = lambda: None
        self.closed = False

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        self.sent += 1
        self.out.append(bytes(frame))
        self.more.append(more)

    def listen(self, receive: Callable[[bytes], bool] | None, caught_up: Callable[[], None] | None = None) -> None:
        self.receive, self.caught_up = receive, caught_up

    def give(self, frame: bytes) -> None:
        self.waiting.append(frame)
        self.ready()

    def ready(self) -> None:
        while self.waiting and self.receive is not None and self.receive(self.waiting[0]):
            del self.waiting[0]
            self.received += 1
        if self.caught_up is not None:
            self.caught_up()

    def connect(self, connected: bool) -> None:
        self.connected = connected
        self.link_changed()

    def close(self) -> None:
        self.closed = True


class PeerWire(FakeWire):
    """A host at the other end, 10.0.0.1, that answers ARP and ICMP echo; fragments too."""

    MAC = b"\x52\x54\x00\x00\x00\x01"
    IP = bytes((10, 0, 0, 1))

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        super().send(frame)
        frame = bytes(frame)
        kind = frame[12:14]
        if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == self.IP:  # who has it?
            answer = frame[14:20] + b"\0\2" + self.MAC + self.IP + frame[22:32]
        elif kind == b"\x08\x00" and frame[23] == 1 and frame[30:34] == self.IP:
            payload = frame[34:]
            if (
                not struct.unpack(">H", frame[20:22])[0] & 0x1FFF
            ):  # the first fragment has the header: reply, not request
                checksum = struct.unpack(">H", payload[2:4])[0] + 0x0800
                payload = b"\0\0" + struct.pack(">H", (checksum & 0xFFFF) + (checksum >> 16)) + payload[4:]
            answer = frame[14:26] + self.IP + frame[26:30] + payload
        else:
            return
        self.give(frame[6:12] + self.MAC + kind + answer)


class SocketPeer(PeerWire):
    """The same as 10.0.1.1, and as a program of its own: it listens at *path* and has the first that connects, inside
    `with`."""

    IP = bytes((10, 0, 1, 1))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)]
        self._thread = Thread(target=self._serve)

    def _serve(self) -> None:
        try:
            connection, _ = self._sockets[0].accept()
        except OSError:  # __exit__()
            return
        self._sockets.append(connection)
        with connection.makefile("rb") as stream:
            while length := stream.read(LENGTH):
                self.send(stream.read(int.from_bytes(length, "big")))

    def give(self, frame: bytes) -> None:
        self._sockets[1].sendall(len(frame).to_bytes(LENGTH, "big") + frame)

    def __enter__(self) -> Self:
        self._sockets[0].bind(str(self._path))
        self._sockets[0].listen()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self._sockets:
            one.shutdown(socket.SHUT_RDWR)  # which ends what the thread waits for
        self._thread.join()
        for one in self._sockets:
            one.close()
        self._path.unlink()


class FakeOffloadWire(FakeWire):
    """With a header before each frame."""

    offloads = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 11

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def offload(self, features: int) -> None:
        self.taken.append(features & self.offloads)


class LentWire(FakeOffloadWire):
    """Of several queues, each of which may be lent to a server; the descriptor is nobody's."""

    def __init__(self, queues: int = 1, fd: int = 70) -> None:
        super().__init__()
        self.others = [LentWire(1, fd + number) for number in range(1, queues)]
        self.used = 0
        self.fd = fd
        self.lent = False

    def use(self, count: int) -> None:
        self.used = count

    def lend(self) -> int:
        assert not self.lent
        self.lent = True
        return self.fd

    def take_back(self) -> None:
        self.lent = False


class OneWire:
    """The Networks that has it."""

    def __init__(self, wire: FakeWire, home: bytes = b"here") -> None:
        self.wire = wire
        self.home = home
        self.asked: dict[str, object] = {}

    def open(
        self,
        to: str,
        *,
        headers: bool = False,
        name: str | None = None,
        forward: str | None = None,
        mtu: int | None = None,
        dump: Path | None = None,
        queues: int = 1,
        lend: bool = False,
    ) -> Wire:
        self.asked = {"to": to, "headers": headers, "name": name, "forward": forward, "mtu": mtu, "dump": dump}
        self.asked |= {"queues": queues, "lend": lend}
        return self.wire


class NetDriver:
    """Of one card, on a board of its own."""

    def __init__(
        self,
        wire: FakeWire | None = None,
        *,
        features: int = 0,
        without: int = 0,
        size: int | None = None,
        servers: FakeVhost | None = None,
        home: bytes = b"here",
        **words: Any,
    ) -> None:
        """*features* beside those of a card, *without* some; *size* of its rings."""
        self.wire = wire or FakeWire()
        self.networks = OneWire(self.wire, home)
        board = Board()
        self.servers = servers or FakeVhost(board.ram)
        device = VirtioNet("user", self.networks, self.servers, **{"mac": "52:54:00:12:34:56", **words})
        taken = VERSION_1 | features | device.features & 0xFFFFFF & ~without
        self._drive(device, Virtio.of(device, board), taken, size)

    def _drive(self, device: VirtioNet, virtio: Virtio, features: int, size: int | None = None) -> None:
        self.device, self.virtio, self.ram = device, virtio, virtio.board.ram
        self.features = features
        self.queues: list[Driver] = virtio.setup(features, size)
        self.given: dict[int, list[tuple[int, int]]] = {}
        """Of a chain that waits for a frame, its buffers."""
        self._rooms = 0

    @classmethod
    def of_machine(cls, machine: Machine, name: str = "virtio-net") -> NetDriver:
        """Of a card that a machine has, whose guest leaves it alone; all inside machine.call()."""
        device = machine.board.devices[name]
        assert isinstance(device, VirtioNet)
        driver = cls.__new__(cls)
        driver._drive(device, Virtio.of_machine(machine, device), VERSION_1 | device.features & 0xFFFFFF)
        return driver

    def config(self, offset: int, size: int) -> int:
        return self.virtio.read(0x3000 + offset, size)

    def mac(self) -> bytes:
        return bytes(self.config(at, 1) for at in range(6))

    def status(self) -> int:
        return self.config(6, 2)

    def _room(self, count: int = 1) -> int:
        at = BUFFERS + self._rooms % 2048 * ROOM
        self._rooms += count
        return at

    def offer(self, *lengths: int, kick: bool = True, pair: int = 0) -> None:
        """A buffer to receive into, of pieces of so many bytes."""
        pieces = [(self._room(-(-length // ROOM)), length) for length in lengths]
        chain = self.queues[2 * pair + RECEIVE].add([(at, length, True) for at, length in pieces])
        assert chain is not None
        self.given[pair << 16 | chain] = pieces
        if kick:
            self.virtio.kick(2 * pair + RECEIVE)

    def received(self, pair: int = 0) -> list[bytes]:
        """What is in each buffer that came back, header included."""
        found = []
        for chain, length in self.queues[2 * pair + RECEIVE].used():
            data = b"".join(self.ram.read(at, size) for at, size in self.given.pop(pair << 16 | chain))
            found.append(data[:length])
        return found

    def frames(self, pair: int = 0) -> list[bytes]:
        """Whole frames, put together as num_buffers says."""
        found, buffers = [], self.received(pair)
        while buffers:
            (count,) = struct.unpack_from("<H", buffers[0], 10)
            assert 1 <= count <= len(buffers)
            found.append(b"".join(buffers[:count])[VNET_HEADER:])
            del buffers[:count]
        return found

    def send(self, data: bytes, pieces: int = 1, header: bytes = bytes(VNET_HEADER), pair: int = 0) -> None:
        whole = header + data
        at = self._room(-(-max(1, len(whole)) // ROOM))
        self.ram.write(at, whole)
        step = max(1, -(-len(whole) // pieces))
        chain = self.queues[2 * pair + TRANSMIT].add(
            [(at + n, min(step, len(whole) - n), False) for n in range(0, len(whole) or 1, step)]
        )
        assert chain is not None
        self.virtio.kick(2 * pair + TRANSMIT)

    def command(self, kind: int, command: int, data: bytes = b"") -> int:
        """Its answer."""
        at = self._room(-(-(len(data) + 3) // ROOM))
        self.ram.write(at, bytes((kind, command)) + data + b"\xee")
        end = at + 2 + len(data)
        control = len(self.queues) - 1
        assert self.queues[control].add([(at, 2 + len(data), False), (end, 1, True)]) is not None
        self.virtio.kick(control)
        assert len(self.queues[control].used()) == 1
        return self.ram.read_int(end, 1)
