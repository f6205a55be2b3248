"""virtio-console with several ports: byte streams between guest and host, each with a name (virtio 1.2, section 5.3).

Queues: receiveq and transmitq of port 0, the same two for control messages, then two for each further port. A control
message is an id, an event and a value (VIRTIO_CONSOLE_PORT_NAME has the name behind it). Linux makes /dev/vportNpM of a
port, whose name is in /sys/class/virtio-ports; a reader finds the end there when the host has closed the port. Of one
that is a console it makes a terminal, /dev/hvc0. Configuration: cols and rows, 16 bits each, max_nr_ports and emerg_wr,
32 bits each; a character written to the last comes out of the console without any queue.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_CONSOLE
from pyvmm.virtio.device import RING_FEATURES, VirtioDevice
from pyvmm.virtio.queue import VirtQueue

VIRTIO_CONSOLE_F_SIZE: Final = 0
VIRTIO_CONSOLE_F_MULTIPORT: Final = 1
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 2

VIRTIO_CONSOLE_DEVICE_READY: Final = 0
VIRTIO_CONSOLE_DEVICE_ADD: Final = 1
VIRTIO_CONSOLE_PORT_READY: Final = 3
VIRTIO_CONSOLE_CONSOLE_PORT: Final = 4
VIRTIO_CONSOLE_RESIZE: Final = 5
VIRTIO_CONSOLE_PORT_OPEN: Final = 6
VIRTIO_CONSOLE_PORT_NAME: Final = 7

CONTROL: Final = struct.Struct("<IHH")
"""struct virtio_console_control: id, event, value."""
CONFIG: Final = struct.Struct("<HHII")
"""struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr."""
SIZE: Final = struct.Struct("<HH")
"""struct virtio_console_resize: cols, rows; Linux before 6.16 takes them for rows, cols."""
EMERG_WRITE_AT: Final = 8
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
MAX_PORTS: Final = 31
"""As of QEMU's virtio-serial."""
RING: Final = 64
MAX_WRITE: Final = 1 << 20
"""Bytes that are taken of one chain; what is beyond is lost. Linux writes 32 KiB at the most, splices 64."""
MAX_MESSAGES: Final = 64
"""While so many control messages wait for buffers, those of the driver wait too."""


class Port:
    """One stream, as the host holds it. Its methods are for who has the machine lock."""

    STATE = ("ready", "guest_open", "host_open", "closing", "buffers")

    def __init__(self, console: VirtioConsole, number: int, name: str) -> None:
        self._console = console
        self.ready = False
        """The driver knows it."""
        self.is_console = False
        self.comes_and_goes = False
        """Somebody connects to it and leaves again, so that a reset finds it as it is; else its end stays its end."""
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

    def connect(self) -> None:
        """Somebody is at the host's end now."""
        if self.is_console:  # which is there all the time
            return
        if self.closing:  # of who was there before the driver has not read all
            self.closing = False
            self._say_open(False)
        self.host_open = True
        self._say_open(True)

    def _say_open(self, open: bool) -> None:
        self.host_open = open
        if self.ready or self.guest_open:
            self._console.say_open(self.number, open)

    def hang_up(self) -> None:
        """Close the host's end: a reader in the guest finds the end after all that was sent."""
        if self.is_console:
            return
        self.closing = True
        self.close_if_taken()

    def close_if_taken(self) -> None:
        """A buffer comes back when it has been read. A driver that heard of the end before might leave some unread:
        Linux looks for data first, and then whether anybody is there."""
        nobody = self.comes_and_goes and not self.guest_open
        if self.closing and (nobody or (self.guest_open and self.receiveq.count() >= self.buffers)):
            self.closing = False
            self._say_open(False)

    def reset(self) -> None:
        """The driver begins anew."""
        self.ready = self.guest_open = False
        self.buffers = 0
        if self.comes_and_goes:
            self.host_open = self.host_open and not self.closing
            self.closing = False
        else:
            self.closing = self.closing or not self.host_open
            self.host_open = True

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
                queue.copied(len(data))
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
    STATE: ClassVar[tuple[str, ...]] = ("ports", "messages")

    def __init__(self, names: Sequence[str], trace: Channel = OFF) -> None:
        super().__init__(trace, queue_sizes=(RING,) * (2 * len(names) + 2))
        self.config: bytearray = bytearray(CONFIG.pack(80, 25, len(names), 0))
        self.ports = [Port(self, number, name) for number, name in enumerate(names)]
        self.messages: deque[bytes] = deque()
        """For the driver, which has had no buffer for them."""

    def port(self, name: str) -> Port:
        return next(port for port in self.ports if port.name == name)

    def reset(self) -> None:
        self.messages.clear()
        for port in self.ports:
            port.reset()

    def driver_ok_changed(self, ok: bool) -> None:
        """A driver that knows one port alone says nothing of it."""
        if ok and not self.driver_features >> VIRTIO_CONSOLE_F_MULTIPORT & 1:
            port = self.ports[0]
            port.guest_open = True
            if port.on_room is not None:
                port.on_room()

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

    def resize(self, columns: int, rows: int) -> None:
        """The terminal of the console has another size now."""
        new = SIZE.pack(columns & 0xFFFF, rows & 0xFFFF)
        if self.config[: SIZE.size] == new:
            return
        self.config[: SIZE.size] = new
        self.config_changed()
        for port in self.ports:
            if port.is_console and port.ready:
                self._say_size(port.number)

    def _say_size(self, number: int) -> None:
        if self.driver_features >> VIRTIO_CONSOLE_F_SIZE & 1:
            self._forget(number, VIRTIO_CONSOLE_RESIZE)
            self.say(number, VIRTIO_CONSOLE_RESIZE, 0, bytes(self.config[: SIZE.size]))

    def say_open(self, number: int, open: bool) -> None:
        """The host's end of a port; where the driver does not listen, no more than the last two of them wait."""
        waiting = [m for m in self.messages if CONTROL.unpack_from(m)[:2] == (number, VIRTIO_CONSOLE_PORT_OPEN)]
        if len(waiting) > 1:
            self._forget(number, VIRTIO_CONSOLE_PORT_OPEN)
            self.messages.append(CONTROL.pack(number, VIRTIO_CONSOLE_PORT_OPEN, int(not open)))
        self.say(number, VIRTIO_CONSOLE_PORT_OPEN, int(open))

    def _forget(self, number: int, event: int) -> None:
        """The messages of that kind that the driver has had no buffer for."""
        kept = [m for m in self.messages if CONTROL.unpack_from(m)[:2] != (number, event)]
        self.messages.clear()
        self.messages.extend(kept)

    def config_write(self, offset: int, size: int, value: int) -> None:
        port = self.ports[0]
        if offset == EMERG_WRITE_AT and self.features >> VIRTIO_CONSOLE_F_EMERG_WRITE & 1 and not port.held:
            port.output(bytes([value & 0xFF]))  # of a reader that is slow it is lost: it has no ring to wait in

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
                port.ready = True
                if port.is_console:
                    self.say(number, VIRTIO_CONSOLE_CONSOLE_PORT, 1)
                    self._say_size(number)
                self.say(number, VIRTIO_CONSOLE_PORT_NAME, 1, port.name.encode())
                self.say(number, VIRTIO_CONSOLE_PORT_OPEN, int(port.host_open))
            elif event == VIRTIO_CONSOLE_PORT_OPEN:
                port.guest_open = bool(value)
                port.close_if_taken()
                if port.guest_open and port.on_room is not None:
                    port.on_room()


def _nobody(data: bytes) -> None:
    """Of a port that nothing on the host is tied to: what the guest writes is lost."""
