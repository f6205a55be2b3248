"""The driver's side of a virtio console with ports."""

from __future__ import annotations

import struct

from pyvmm.virtio.console import Port, VirtioConsole
from tests.rig.virtio_driver import Driver, Virtio

VERSION_1, MULTIPORT = 1 << 32, 1 << 1
DATA, ELSEWHERE = 0x100000, 0x1F0000
READY, ADD, PORT_READY, OPEN, NAME = 0, 1, 3, 6, 7


class ConsoleDriver:
    """A driver with all buffers of all receive queues made available, a page each."""

    def __init__(
        self,
        features: int = VERSION_1 | MULTIPORT,
        names: tuple[str, ...] = ("in", "out"),
        device: VirtioConsole | None = None,
    ) -> None:
        """*device*, whose ports somebody has already, or one with ports of *names*."""
        self.device = device or VirtioConsole(names)
        self.virtio = Virtio.of(self.device)
        self.ram = self.virtio.board.ram
        self.queues: list[Driver] = self.virtio.setup(features)
        self.got: dict[str, bytearray] = {}
        for port in self.device.ports:
            self.got[port.name] = bytearray()
            if device is None or port is getattr(device, "terminal", None):
                port.output = self.got[port.name].extend
        self.place: dict[tuple[int, int], int] = {}
        self.next = DATA
        for index in (2, *(port.receiveq.index for port in self.device.ports)):
            for _ in range(8):
                self.make_room(index)
            self.kick(index)

    def kick(self, index: int) -> None:
        if self.queues[index].needs_kick():
            self.virtio.kick(index)

    def make_room(self, index: int, size: int = 64) -> None:
        head = self.queues[index].add([(self.next, size, True)])
        assert head is not None
        self.place[index, head] = self.next
        self.next += 0x100

    def received(self, index: int, room: int = 0) -> list[bytes]:
        """What has come; *room* is made again for so many of them, and the device kicked if it asked for that."""
        data = [self.ram.read(self.place[index, head], length) for head, length in self.queues[index].used()]
        for _ in data[:room]:
            self.make_room(index)
        if room:
            self.kick(index)
        return data

    def control(self) -> list[tuple[int, int, int, bytes]]:
        return [(*struct.unpack("<IHH", data[:8]), data[8:]) for data in self.received(2, 99)]

    def say(self, port: int, event: int, value: int) -> None:
        self.send(3, struct.pack("<IHH", port, event, value))

    def send(self, index: int, data: bytes) -> None:
        self.ram.write(ELSEWHERE, data)
        assert self.queues[index].add([(ELSEWHERE, len(data), False)]) is not None
        self.kick(index)
        self.queues[index].used()

    def open(self, name: str) -> Port:
        port = self.device.port(name)
        self.say(port.number, PORT_READY, 1)
        self.say(port.number, OPEN, 1)
        self.control()
        return port
