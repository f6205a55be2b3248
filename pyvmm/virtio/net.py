"""virtio-net: a network card on a wire of this host (virtio 1.2, section 5.1; docs/networks.md).

Queues: pairs of receiveq and transmitq, and one for commands. Before each frame is a struct virtio_net_hdr of 12 bytes:
flags, gso_type, le16 hdr_len, gso_size, csum_start, csum_offset, num_buffers. With MRG_RXBUF a frame fills as many
buffers as it needs. A wire that is an OffloadWire fills in and reads the rest of the header; for another it is zero.

Of several pairs the driver uses one until it asks for more (MQ), and where it wants commands it must take MQ too, so
that these have one place: FEATURES_OK is refused else. vhost-net may serve the pairs, see net_vhost.py: then no filter
of the driver's is obeyed, which is best effort anyway (section 5.1.6.5.1), and `wire` counts nothing.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from pyvmm.backends.mac import parse_mac, random_mac
from pyvmm.backends.wire import (
    HEADER_SIZE,
    MAX_FRAME,
    VNET_HEADER,
    Carrier,
    LendingWire,
    Networks,
    OffloadWire,
    QueuedWire,
    Wire,
)
from pyvmm.errors import UserError, printable
from pyvmm.trace import OFF, Channel
from pyvmm.units import KIB
from pyvmm.virtio.abi import VIRTIO_ID_NET, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm.virtio.device import RING_FEATURES, SPLIT_RING_FEATURES, VirtioDevice
from pyvmm.virtio.net_filter import ETH_ALEN, Filter
from pyvmm.virtio.net_vhost import ServedPair
from pyvmm.virtio.offload import OffloadedQueue
from pyvmm.virtio.queue import VirtQueue
from pyvmm.virtio.ring import Chain
from pyvmm.virtio.vhost import RingServers

# linux/virtio_net.h
VIRTIO_NET_F_GUEST_CSUM: Final = 1
VIRTIO_NET_F_MTU: Final = 3
VIRTIO_NET_F_MAC: Final = 5
VIRTIO_NET_F_MRG_RXBUF: Final = 15
VIRTIO_NET_F_STATUS: Final = 16
VIRTIO_NET_F_CTRL_VQ: Final = 17
VIRTIO_NET_F_CTRL_RX: Final = 18
VIRTIO_NET_F_CTRL_RX_EXTRA: Final = 20
VIRTIO_NET_F_GUEST_ANNOUNCE: Final = 21
VIRTIO_NET_F_MQ: Final = 22
VIRTIO_NET_F_CTRL_MAC_ADDR: Final = 23

VIRTIO_NET_S_LINK_UP: Final = 1
VIRTIO_NET_S_ANNOUNCE: Final = 2

VIRTIO_NET_CTRL_RX: Final = 0
VIRTIO_NET_CTRL_MAC: Final = 1
VIRTIO_NET_CTRL_MAC_TABLE_SET: Final = 0
VIRTIO_NET_CTRL_MAC_ADDR_SET: Final = 1
VIRTIO_NET_CTRL_ANNOUNCE: Final = 3
VIRTIO_NET_CTRL_ANNOUNCE_ACK: Final = 0
VIRTIO_NET_CTRL_MQ: Final = 4
VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: Final = 0
VIRTIO_NET_OK: Final = 0
VIRTIO_NET_ERR: Final = 1

CONFIG: Final = struct.Struct("<6sHHH")
"""struct virtio_net_config up to mtu: mac, status, max_virtqueue_pairs, mtu."""
NUM_BUFFERS_AT: Final = 10
EMPTY_HEADER: Final = bytes(VNET_HEADER)

RING: Final = 256
CONTROL_RING: Final = 64
RECEIVE, TRANSMIT, CONTROL = range(3)
"""Of a card with one pair of queues; of another, those of pair N are 2N on, and that for commands is behind all."""
MAX_PIECES: Final = 1024
"""Descriptors that a frame is spread over; a driver with buffers of a page needs 17."""
LONG: Final = 16 * KIB
"""Bytes of a frame that the driver is shown by itself, so that it takes that while the next is on its way; shorter
ones together, once the wire has no more."""
MAX_COMMAND: Final = 1 << 16
"""Bytes of a command that are read: tables of some ten thousand addresses."""
FEATURES: Final = (
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
)
VHOST_MAY_LACK: Final = (VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX)
"""What is between the driver and whoever serves the rings."""


class VirtioNet(VirtioDevice):
    """A network card: to=user, tap or socket:PATH (docs/networks.md).

    Under the machine lock `set_link()` pulls the cable out and puts it in; `wire` has the counts.
    """

    device_id = VIRTIO_ID_NET
    queue_sizes = (RING, RING, CONTROL_RING)
    class_code = 0x020000
    STATE: ClassVar[tuple[str, ...]] = ("mac", "plugged", "announcing", "filter", "home", "pairs")

    def __init__(
        self,
        to: str,
        networks: Networks,
        servers: RingServers,
        *,
        mac: str | None = None,
        mtu: int | None = None,
        name: str | None = None,
        queues: int = 1,
        vhost: bool = False,
        forward: str | None = None,
        dump: Path | None = None,
        trace: Channel = OFF,
    ) -> None:
        try:
            self._own_mac = random_mac() if mac is None else parse_mac(mac)
        except ValueError as error:
            raise UserError(f"net {printable(to)}: {error}") from None
        self.mac = self._own_mac
        """The driver may set another until the next reset."""
        self.plugged = True
        """The cable is in the card."""
        self.announcing = False
        """The driver is asked to tell the network where it is now."""
        self.filter = Filter()
        self.pairs = 1
        """That the driver uses."""
        self._max_pairs = queues
        self._home = networks.home
        self.wire = networks.open(
            to,
            headers=True,
            name=name,
            forward=forward,
            mtu=mtu,
            dump=dump,
            queues=queues,
            lend=vhost,
        )
        wire = self.wire
        self._offloads: OffloadWire | None = wire if isinstance(wire, OffloadWire) else None
        self._carrier: Carrier | None = wire if isinstance(wire, Carrier) else None
        self._queued: QueuedWire | None = wire if isinstance(wire, QueuedWire) and queues > 1 else None
        self._wires: tuple[Wire, ...] = (wire, *(() if self._queued is None else self._queued.others))
        try:
            self._served = tuple(
                ServedPair(servers, one) for one in self._wires if vhost and isinstance(one, LendingWire)
            )
        except UserError:
            wire.close()
            raise
        super().__init__(trace, (RING, RING) * queues + (CONTROL_RING,))
        self._control = len(self.queues) - 1
        self.features = self._make_features(mtu is not None)
        self._mtu = mtu or 0
        self.config = self._make_config()
        if self._carrier is not None:
            self._carrier.link_changed = self._link_changed

    def make_queue(self, index: int, size: int) -> VirtQueue:
        pair = index // 2
        return self._served[pair].offload.queue(index, size) if pair < len(self._served) else VirtQueue(index, size)

    def _make_features(self, mtu: bool) -> int:
        features = SPLIT_RING_FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX if self._served else RING_FEATURES
        features |= sum(1 << feature for feature in FEATURES) | (1 << VIRTIO_NET_F_MTU if mtu else 0)
        features |= 1 << VIRTIO_NET_F_MQ if self._max_pairs > 1 else 0
        features |= 0 if self._offloads is None else self._offloads.offloads
        for pair in self._served:
            features &= ~sum(1 << feature for feature in VHOST_MAY_LACK if not pair.features >> feature & 1)
        return features

    # Configuration

    def _negotiated(self, feature: int) -> bool:
        return bool(self.driver_features >> feature & 1)

    @property
    def link(self) -> bool:
        """Whether the cable is plugged in and somebody is at its other end."""
        return self.plugged and (self._carrier is None or self._carrier.connected)

    def set_link(self, up: bool) -> None:
        """Pull the cable out of the card, or put it in again. Under the machine lock: machine.call()."""
        self.plugged = up
        self._link_changed()

    def _link_changed(self) -> None:
        self._follow()
        self._update_status()

    def agrees(self, features: int) -> bool:
        commands, several = (features >> feature & 1 for feature in (VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ))
        return self._max_pairs == 1 or several >= commands

    def _make_config(self) -> bytes:
        status = VIRTIO_NET_S_LINK_UP if self.link else 0
        status |= VIRTIO_NET_S_ANNOUNCE if self.announcing else 0
        return CONFIG.pack(self.mac, status, self._max_pairs, self._mtu)

    def _update_status(self) -> None:
        config = self._make_config()
        if config != self.config:
            self.config = config
            self.config_changed()

    # Frames

    def handle_queue(self, queue: VirtQueue) -> None:
        if isinstance(queue, OffloadedQueue):
            queue.ring_doorbell()
        elif queue.index == self._control:
            pairs = self.pairs
            for chain in queue:
                self._obey(queue, chain)
            if self.pairs != pairs:  # once for all that it says: the host takes a while, and the answers wait for that
                self._tell_wire()
        elif queue.index % 2 == RECEIVE:
            queue.set_kicks(False)  # until a frame finds no room
            self._wires[queue.index // 2].ready()
        else:
            wire = self._wires[queue.index // 2]
            link, offload, send = self.link, self._offloads is not None, wire.send
            waiting: bytes | memoryview | None = None
            """The last frame, until it is known whether there is another."""
            for chain in queue:
                if link and VNET_HEADER + HEADER_SIZE <= chain.readable_size <= VNET_HEADER + MAX_FRAME:
                    readable = chain.readable
                    data = bytes(readable[0]) if len(readable) == 1 else b"".join(readable)
                    if waiting is not None:
                        send(waiting, more=True)
                    waiting = data if offload else memoryview(data)[VNET_HEADER:]
                else:
                    wire.dropped += 1
                queue.push(chain, 0)
            if waiting is not None:
                send(waiting)

    def _receive(self, pair: int, frame: bytes) -> bool:
        """A frame of the wire's, with a header where that is an OffloadWire; False where there is no room for it."""
        queue = self.queues[2 * pair]
        data = frame if self._offloads is not None else EMPTY_HEADER + frame
        if data[0] and not self._negotiated(VIRTIO_NET_F_GUEST_CSUM):
            data = b"\0" + data[1:]  # section 5.1.6.4.1; a tap says that the host has seen a good checksum
        if not self.plugged or not self.filter.takes(data[VNET_HEADER : VNET_HEADER + ETH_ALEN], self.mac):
            return True
        merge = self._negotiated(VIRTIO_NET_F_MRG_RXBUF)
        if not queue.fill(data, MAX_PIECES if merge else 1, NUM_BUFFERS_AT):
            chains = self._room_for(queue, len(data), merge)
            if chains is None:
                return False
            if not chains:
                self._wires[pair].dropped += 1
                return True
            self._fill(queue, chains, data)
        if len(data) >= LONG:
            queue.notify()
        return True

    def _room_for(self, queue: VirtQueue, size: int, merge: bool) -> list[Chain] | None:
        """Chains with room for *size* bytes; None while there are too few, none where there will never be enough."""
        chains: list[Chain] = []
        room = slots = pieces = 0
        while room < size:
            chain = queue.pop_or_ask()
            if chain is None:
                queue.put_back(chains)
                return None
            chains.append(chain)
            room += chain.writable_size
            slots += chain.slots
            pieces += chain.descriptors
            most = not merge or slots >= queue.size or pieces >= MAX_PIECES
            if most and room < size:  # such a driver can never hold it
                queue.put_back(chains)
                return []
        return chains

    def _fill(self, queue: VirtQueue, chains: list[Chain], data: bytes) -> None:
        whole = bytearray(data)
        struct.pack_into("<H", whole, NUM_BUFFERS_AT, len(chains))
        rest = memoryview(whole)
        for chain in chains:
            written = 0
            for view in chain.writable:
                part = rest[: len(view)]
                view[: len(part)] = part
                rest = rest[len(part) :]
                written += len(part)
                if not rest:
                    break
            queue.push(chain, written)

    # Commands

    def _obey(self, queue: VirtQueue, chain: Chain) -> None:
        """struct virtio_net_ctrl: class, command, what it says; and a byte for the answer (section 5.1.6.5)."""
        if not chain.writable:
            queue.fail("a command without room for its answer")
            return
        done = False
        if 2 <= chain.readable_size <= MAX_COMMAND:
            text = chain.read(MAX_COMMAND)
            done = self._do(text[0], text[1], text[2:])
        chain.writable[0][0] = VIRTIO_NET_OK if done else VIRTIO_NET_ERR
        queue.push(chain, 1)

    def _do(self, kind: int, command: int, data: bytes) -> bool:
        """Whether it is done."""
        if self.trace.enabled:
            self.trace(f"command {kind}.{command}, {len(data)} bytes")
        has, what = self._negotiated, (kind, command)
        if kind == VIRTIO_NET_CTRL_RX and has(VIRTIO_NET_F_CTRL_RX):
            return len(data) == 1 and self.filter.set_mode(command, bool(data[0]))
        if what == (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) and has(VIRTIO_NET_F_CTRL_RX):
            return self.filter.set_tables(data)
        if what == (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) and has(VIRTIO_NET_F_CTRL_MAC_ADDR):
            if len(data) != ETH_ALEN or data[0] & 1:
                return False
            self.mac = data
        elif what == (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) and has(VIRTIO_NET_F_GUEST_ANNOUNCE):
            self.announcing = False
        elif what == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) and has(VIRTIO_NET_F_MQ):
            pairs = int.from_bytes(data, "little")
            if len(data) != 2 or not 1 <= pairs <= self._max_pairs:
                return False
            self.pairs = pairs
        else:
            return False
        self.config = self._make_config()
        return True

    # Life

    @property
    def home(self) -> bytes:
        """Where it is: one that is restored elsewhere tells the network."""
        return self._home

    @home.setter
    def home(self, saved: bytes) -> None:
        if saved != self._home:
            self.announcing = True

    def driver_ok_changed(self, ok: bool) -> None:
        self._tell_wire()

    def reset(self) -> None:
        self.mac = self._own_mac
        self.announcing = False
        self.pairs = 1
        self.filter.reset()
        self.config = self._make_config()
        self._tell_wire()

    def restored(self) -> None:
        self.announcing = self.announcing and self.driver_ok and self._negotiated(VIRTIO_NET_F_GUEST_ANNOUNCE)
        self._tell_wire()
        self.transport.defer(self._update_status)

    def _tell_wire(self) -> None:
        if self._offloads is not None:
            self._offloads.offload(self.driver_features if self.driver_ok else 0)
        if self._queued is not None:
            self._queued.use(self.pairs)
        for pair, wire in enumerate(self._wires):
            mine = self.driver_ok and pair < self.pairs and not self._served
            if mine:
                wire.listen(partial(self._receive, pair), self.queues[2 * pair].notify)
            else:
                wire.listen(None)
        self._follow()

    def _follow(self) -> None:
        """vhost serves the pairs that are in use while there is a link."""
        for number, pair in enumerate(self._served):
            pair.offload.allow(self.link and number < self.pairs)

    def close(self) -> None:
        for pair in self._served:
            pair.close()
        self.wire.close()
