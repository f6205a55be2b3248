"""virtio-console with several ports: byte streams between guest and host, each with a name (virtio 1.2, section 5.3).

Queues: receiveq and transmitq of port 0, the same two for control messages, then two for each further port. A control
message is an id, an event and a value (VIRTIO_CONSOLE_PORT_NAME has the name behind it). Linux makes /dev/vportNpM of a
port, whose name is in /sys/class/virtio-ports; a reader finds the end there when the host has closed the port.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_CONSOLE
from pyvmm.virtio.device import RING_FEATURES, VirtioDevice
from pyvmm.virtio.queue import VirtQueue

VIRTIO_CONSOLE_F_MULTIPORT: Final = 1

VIRTIO_CONSOLE_DEVICE_READY: Final = 0
VIRTIO_CONSOLE_DEVICE_ADD: Final = 1
VIRTIO_CONSOLE_PORT_READY: Final = 3
VIRTIO_CONSOLE_PORT_OPEN: Final = 6
VIRTIO_CONSOLE_PORT_NAME: Final = 7

CONTROL: Final = struct.Struct("<IHH")
"""struct virtio_console_control: id, event, value."""
CONFIG: Final = struct.Struct("<HHII")
"""struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr."""
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
RING: Final = 64
MAX_WRITE: Final = 1 << 20
"""Bytes that are taken of one chain; what is beyond is lost. Linux writes 32 KiB at the most, splices 64."""
MAX_MESSAGES: Final = 64
"""While so many control messages wait for buffers, those of the driver wait too."""


class Port:
    """One stream, as the host holds it. Its methods are for who has the machine lock."""

    STATE = ("guest_open", "host_open", "closing", "buffers")

    def __init__(self, console: VirtioConsole, number: int, name: str) -> None:
        self._console = console
        self.number = number
        self.name = name
        self.output: Callable[[bytes], None] = _nobody
        """Gets what the guest writes."""
        self.on_room: Callable[[], None] | None = None
        """Called when the guest opens the port, and when it has made room."""
        self.held = False
        """Set it for a reader that is slow: what the guest writes stays in its ring, until release()."""
        self.guest_open = False
        self.host_open = True
        self.closing = False
        """The host's end is to be closed when the guest has taken all that came before."""
        self.buffers = 0
        """How many the guest holds out when it has taken all; 0 while it was sent nothing."""
        first = 2 * number + (2 if number else 0)
        self.receiveq, self.transmitq = console.queues[first], console.queues[first + 1]

    @property
    def listening(self) -> bool:
        """The guest has the port open."""
        return self.guest_open

    @property
    def drained(self) -> bool:
        """All that the guest had written when it last kicked has been taken."""
        return not self.held and not self.transmitq.put_off

    def receive(self, data: bytes) -> int:
        """Bytes from the host to the guest; returns how many were taken. The rest is the caller's until on_room."""
        queue, done = self.receiveq, 0
        if not self.guest_open or not self.host_open or self.closing or not data:
            return 0
        self.buffers = max(self.buffers, queue.count())
        while done < len(data):
            chain = queue.pop_or_ask()
            if chain is None:
                break
            length = chain.write(data[done : done + MAX_WRITE])
            queue.push(chain, length)
            done += length
        queue.notify()
        return done

    def hang_up(self) -> None:
        """Close the host's end: a reader in the guest finds the end after all that was sent."""
        self.closing = True
        self.close_if_taken()

    def close_if_taken(self) -> None:
        """A buffer comes back when it has been read. A driver that heard of the end before might leave some unread:
        Linux looks for data first, and then whether anybody is there."""
        if self.closing and self.guest_open and self.receiveq.count() >= self.buffers:
            self.closing = False
            self.host_open = False
            self._console.say(self.number, VIRTIO_CONSOLE_PORT_OPEN, 0)

    def release(self) -> None:
        """Go on taking what the guest writes."""
        if self.held:
            self.held = False
            self.transmitq.kicked()

    def take(self) -> None:
        """Give on what the guest has written."""
        queue = self.transmitq
        if not self.held and queue.running:
            for chain in queue:
                data = chain.read(MAX_WRITE)
                queue.push(chain, 0)
                if data:
                    self.output(data)
                if self.held:
                    break
            queue.notify()


class VirtioConsole(VirtioDevice):
    """Ports with *names*, in this order. What the guest has written to one port before it writes to another has been
    taken by then, unless `drained` says otherwise."""

    device_id = VIRTIO_ID_CONSOLE
    class_code = 0x078000
    features = RING_FEATURES | 1 << VIRTIO_CONSOLE_F_MULTIPORT
    STATE = ("ports", "messages")

    def __init__(self, names: Sequence[str], trace: Channel = OFF) -> None:
        super().__init__(trace, queue_sizes=(RING,) * (2 * len(names) + 2))
        self.config = CONFIG.pack(80, 25, len(names), 0)
        self.ports = [Port(self, number, name) for number, name in enumerate(names)]
        self.messages: deque[bytes] = deque()
        """For the driver, which has had no buffer for them."""

    def port(self, name: str) -> Port:
        return next(port for port in self.ports if port.name == name)

    def reset(self) -> None:
        self.messages.clear()
        for port in self.ports:
            port.guest_open = False
            port.closing = port.closing or not port.host_open
            port.host_open, port.buffers = True, 0

    def handle_queue(self, queue: VirtQueue) -> None:
        if queue.index == CONTROL_RECEIVE:
            self._deliver()
            self._listen()
        elif queue.index == CONTROL_TRANSMIT:
            self._listen()
        elif queue.index % 2:
            for port in self.ports:  # in their order, for kicks of several may come in any
                port.take()
        else:
            port = self.ports[max(0, queue.index // 2 - 1)]
            port.close_if_taken()
            if port.on_room is not None and port.guest_open:
                port.on_room()

    def say(self, port: int, event: int, value: int, text: bytes = b"") -> None:
        """A control message for the driver."""
        self.messages.append(CONTROL.pack(port, event, value) + text)
        self._deliver()

    def _deliver(self) -> None:
        queue = self.queues[CONTROL_RECEIVE]
        while self.messages:
            chain = queue.pop_or_ask()
            if chain is None:
                break
            queue.push(chain, chain.write(self.messages.popleft()))
        queue.notify()

    def _listen(self) -> None:
        queue = self.queues[CONTROL_TRANSMIT]
        if len(self.messages) >= MAX_MESSAGES or not queue.running:
            return
        for chain in queue:
            message = chain.read(CONTROL.size)
            queue.push(chain, 0)
            if len(message) == CONTROL.size:
                self._hear(*CONTROL.unpack(message))
            if len(self.messages) >= MAX_MESSAGES:
                break
        queue.notify()

    def _hear(self, number: int, event: int, value: int) -> None:
        if self.trace.enabled:
            self.trace(f"port {number}: control event {event}, value {value}")
        if event == VIRTIO_CONSOLE_DEVICE_READY:
            for port in self.ports if value else ():
                self.say(port.number, VIRTIO_CONSOLE_DEVICE_ADD, 1)
        elif number < len(self.ports):
            port = self.ports[number]
            if event == VIRTIO_CONSOLE_PORT_READY and value:
                self.say(number, VIRTIO_CONSOLE_PORT_NAME, 1, port.name.encode())
                self.say(number, VIRTIO_CONSOLE_PORT_OPEN, int(port.host_open))
            elif event == VIRTIO_CONSOLE_PORT_OPEN:
                port.guest_open = bool(value)
                port.close_if_taken()
                if port.guest_open and port.on_room is not None:
                    port.on_room()


def _nobody(data: bytes) -> None:
    """Of a port that nothing on the host is tied to: what the guest writes is lost."""
