"""virtio-blk: a disk, which is a raw file or a block device of this host (virtio 1.2, section 5.2).

A request is {le32 type, reserved; le64 sector}, data that the device reads or writes, and a status byte that it writes
last. They are read and written by the disk's own threads, straight from and to guest RAM, and come back in any order,
some with one interrupt.

    disk image.raw,cache=writeback   the host's page cache, FLUSH is fdatasync
                  ,cache=none        O_DIRECT past it
                  ,cache=unsafe      FLUSH does nothing: for a disk that nobody needs after a loss of power
                  ,readonly          the guest may not write
                  ,temporary         what it writes is gone with the machine

A driver that has not agreed to FLUSH, or has set `writeback` to 0, has each write safe before it is told of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

from pyvmm.backends import disks as backend
from pyvmm.backends.disks import Disks, OnDisk, Request
from pyvmm.errors import UserError, printable
from pyvmm.state import StateError
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_BLOCK
from pyvmm.virtio.device import RING_FEATURES, VirtioDevice
from pyvmm.virtio.queue import VirtQueue
from pyvmm.virtio.ring import Chain

# linux/virtio_blk.h
VIRTIO_BLK_F_SIZE_MAX: Final = 1
VIRTIO_BLK_F_SEG_MAX: Final = 2
VIRTIO_BLK_F_RO: Final = 5
VIRTIO_BLK_F_BLK_SIZE: Final = 6
VIRTIO_BLK_F_FLUSH: Final = 9
VIRTIO_BLK_F_TOPOLOGY: Final = 10
VIRTIO_BLK_F_CONFIG_WCE: Final = 11
VIRTIO_BLK_F_MQ: Final = 12
VIRTIO_BLK_F_DISCARD: Final = 13
VIRTIO_BLK_F_WRITE_ZEROES: Final = 14

VIRTIO_BLK_T_IN: Final = 0
VIRTIO_BLK_T_OUT: Final = 1
VIRTIO_BLK_T_FLUSH: Final = 4
VIRTIO_BLK_T_GET_ID: Final = 8
VIRTIO_BLK_T_DISCARD: Final = 11
VIRTIO_BLK_T_WRITE_ZEROES: Final = 13

VIRTIO_BLK_S_OK: Final = 0
VIRTIO_BLK_S_IOERR: Final = 1
VIRTIO_BLK_S_UNSUPP: Final = 2
VIRTIO_BLK_ID_BYTES: Final = 20
VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: Final = 1

SECTOR: Final = 512
HEADER: Final = struct.Struct("<IIQ")
SEGMENT: Final = struct.Struct("<QII")
"""struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags."""
CONFIG: Final = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
"""struct virtio_blk_config up to write_zeroes_may_unmap."""
WRITEBACK_AT: Final = 32

QUEUE_SIZE: Final = 256
MAX_QUEUES: Final = 64
SIZE_MAX: Final = 1 << 20
"""Bytes of one buffer that a driver should not exceed."""
SEG_MAX: Final = QUEUE_SIZE - 2
PHYSICAL_BLOCK: Final = 4096
"""Bytes that the host reads and writes at once, as most do."""
MAX_DISCARD_SECTORS: Final = (2 << 30) // SECTOR
MAX_DISCARD_SEGMENTS: Final = 16
MAX_ZEROES_SECTORS: Final = (64 << 20) // SECTOR
MAX_ZEROES_SEGMENTS: Final = 1
MAX_DESCRIPTORS: Final = 64 * QUEUE_SIZE
"""Under way at once, of all queues, which share them out: a few MB of views, that a reset drops in a few milliseconds.
A driver could go on to add without it ever getting one back."""
REQUEST_COST: Final = 16
"""A request counts as so many descriptors more."""


class Ticket(NamedTuple):
    """Whose request it is."""

    queue: VirtQueue
    chain: Chain
    status: memoryview
    """Where the status byte goes."""
    written: int
    """Bytes of the chain that are written where all goes well."""


class VirtioBlk(OnDisk, VirtioDevice):
    """A disk: a raw file or block device of this host (docs/disks.md)."""

    device_id = VIRTIO_ID_BLOCK
    queue_sizes = (QUEUE_SIZE,)
    class_code = 0x010000
    STATE: ClassVar[tuple[str, ...]] = ("disk",)

    def __init__(
        self,
        path: Path,
        disks: Disks,
        *,
        readonly: bool = False,
        cache: Literal["writeback", "none", "unsafe"] = "writeback",
        serial: str = "",
        size: str | None = None,
        temporary: bool = False,
        queues: int = 1,
        format: Literal["raw"] | None = None,
        trace: Channel = OFF,
    ) -> None:
        if not 1 <= queues <= MAX_QUEUES:
            raise UserError(f"disk {printable(str(path))}: queues={queues}: a disk has 1 to {MAX_QUEUES}")
        self.serial = serial.encode()
        if len(self.serial) > VIRTIO_BLK_ID_BYTES:
            raise UserError(
                f"disk {printable(str(path))}: serial={printable(serial)}: it has at most {VIRTIO_BLK_ID_BYTES} bytes"
            )
        super().__init__(trace, (QUEUE_SIZE,) * queues)
        self.disk = disks.open(
            path,
            readonly=readonly,
            cache=cache,
            size=size,
            temporary=temporary,
            raw=format == "raw",
        )
        self.disk.completed = self._completed
        for queue in self.queues:
            queue.kick_fd = self.disk.doorbell(queue.kicked)
        self._block = self.disk.block
        self.features = RING_FEATURES | _features(readonly, queues)
        self.config = bytearray(self._config_of(queues))
        self._descriptors = [0] * queues
        """Of each queue, those of requests that are under way."""
        self._most_descriptors = MAX_DESCRIPTORS // queues
        self._late: list[Request] = []
        """Done while the function was not bus master, so that the driver could not be told."""

    def _config_of(self, queues: int) -> bytes:
        block = self.disk.block
        exponent = max(0, (PHYSICAL_BLOCK // block).bit_length() - 1)
        blocks = max(1, PHYSICAL_BLOCK // block)
        alignment = max(block, PHYSICAL_BLOCK) // SECTOR
        geometry = (0, 0, 0)
        topology = (exponent, 0, blocks, 0)
        discard = (MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, alignment)
        zeroes = (MAX_ZEROES_SECTORS, MAX_ZEROES_SEGMENTS, 1)
        return CONFIG.pack(
            self._sectors, SIZE_MAX, SEG_MAX, *geometry, block, *topology, 1, 0, queues, *discard, *zeroes
        )

    @property
    def _sectors(self) -> int:
        return -(-self.disk.size // SECTOR)

    def resize(self) -> None:
        """The file has another size now: tell the driver. Under the machine lock: machine.call(disk.resize)."""
        if self.disk.measure():
            struct.pack_into("<Q", self.config, 0, self._sectors)
            self.config_changed()

    # Configuration

    def _negotiated(self, feature: int) -> bool:
        return bool(self.driver_features >> feature & 1)

    @property
    def _write_through(self) -> bool:
        """Section 5.2.6.2: whether a write is safe when the driver is told of it."""
        if not self._negotiated(VIRTIO_BLK_F_FLUSH):
            return True
        return self._negotiated(VIRTIO_BLK_F_CONFIG_WCE) and not self.config[WRITEBACK_AT]

    def config_read(self, offset: int, size: int) -> int:
        if offset == WRITEBACK_AT and self._negotiated(VIRTIO_BLK_F_CONFIG_WCE):
            return int(not self._write_through)
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset == WRITEBACK_AT and self._negotiated(VIRTIO_BLK_F_CONFIG_WCE):
            self._set_writeback(value & 1)

    def _set_writeback(self, value: int) -> None:
        assert isinstance(self.config, bytearray)
        self.config[WRITEBACK_AT] = value

    # Requests

    def handle_queue(self, queue: VirtQueue) -> None:
        if self._late:
            late, self._late = self._late, []
            self._give_back(late)
        if self._full(queue):
            return
        requests: list[Request] = []
        for chain in queue:
            request = self._begin(queue, chain)
            if request is not None:
                requests.append(request)
                if self._full(queue):
                    break
        self.disk.submit(*requests)

    def _full(self, queue: VirtQueue) -> bool:
        """What is there already waits until something has come back."""
        return self._descriptors[queue.index] >= self._most_descriptors

    def _begin(self, queue: VirtQueue, chain: Chain) -> Request | None:
        """What the disk is to do; None where that is done already."""
        if not chain.writable:
            queue.fail("a request without a status byte")
            return None
        *into, status = chain.writable
        if len(status) > 1:
            into.append(status[:-1])
            status = status[-1:]
        header, data = _split(chain.readable)
        if len(header) < HEADER.size:
            self._refuse(queue, chain, status, VIRTIO_BLK_S_IOERR)
            return None
        kind, _, sector = HEADER.unpack(header)
        if self.trace.enabled:
            message = f"type {kind} sector {sector} out {sum(map(len, data))} in {sum(map(len, into))}"
            self.trace(message, ("request", queue.index, chain.id))
        if kind == VIRTIO_BLK_T_GET_ID:
            self._get_id(queue, chain, into, status)
            return None
        request = self._request(kind, sector, data, into)
        if isinstance(request, int):
            self._refuse(queue, chain, status, request)
            return None
        request.owner = Ticket(queue, chain, status, request.length + 1 if kind == VIRTIO_BLK_T_IN else 1)
        self._descriptors[queue.index] += chain.descriptors + REQUEST_COST
        return request

    def _request(self, kind: int, sector: int, data: list[memoryview], into: list[memoryview]) -> Request | int:
        """What the disk is to do, or the status of what it is not."""
        if kind == VIRTIO_BLK_T_IN:
            return self._transfer(backend.READ, sector, into)
        if kind == VIRTIO_BLK_T_OUT:
            return VIRTIO_BLK_S_IOERR if self.disk.readonly else self._transfer(backend.WRITE, sector, data)
        if kind == VIRTIO_BLK_T_FLUSH:
            return Request(backend.FLUSH)
        if kind == VIRTIO_BLK_T_DISCARD and self._negotiated(VIRTIO_BLK_F_DISCARD):
            return self._clear(backend.DISCARD, data, MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS)
        if kind == VIRTIO_BLK_T_WRITE_ZEROES and self._negotiated(VIRTIO_BLK_F_WRITE_ZEROES):
            return self._clear(backend.WRITE_ZEROES, data, MAX_ZEROES_SEGMENTS, MAX_ZEROES_SECTORS)
        return VIRTIO_BLK_S_UNSUPP

    def _transfer(self, operation: int, sector: int, views: list[memoryview]) -> Request | int:
        through = operation == backend.WRITE and self._write_through
        request = Request(operation, sector * SECTOR, views, through=through)
        return request if self._in_range(sector, request.length) else VIRTIO_BLK_S_IOERR

    def _in_range(self, sector: int, length: int) -> bool:
        """Whole blocks of the disk."""
        at = sector * SECTOR
        return at + length <= self._sectors * SECTOR and not at % self._block and not length % self._block

    def _clear(self, operation: int, data: list[memoryview], most: int, most_sectors: int) -> Request | int:
        text = b"".join(data) if sum(map(len, data)) <= most * SEGMENT.size else b""
        if not text or len(text) % SEGMENT.size:
            return VIRTIO_BLK_S_IOERR
        allowed = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if operation == backend.WRITE_ZEROES else 0
        ranges = []
        for sector, count, flags in SEGMENT.iter_unpack(text):
            if flags & ~allowed:
                return VIRTIO_BLK_S_UNSUPP
            if count > most_sectors or not self._in_range(sector, count * SECTOR):
                return VIRTIO_BLK_S_IOERR
            if count:
                ranges.append((sector * SECTOR, count * SECTOR, bool(flags)))
        return Request(operation, ranges=ranges, through=self._write_through)

    def _get_id(self, queue: VirtQueue, chain: Chain, into: list[memoryview], status: memoryview) -> None:
        """The serial, at most 20 bytes, ended by a zero byte where it is shorter."""
        text = self.serial.ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        room = sum(map(len, into))
        done = chain.write(text[:room])
        status[0] = VIRTIO_BLK_S_OK
        queue.push(chain, done + 1 if done == room else done)

    def _refuse(self, queue: VirtQueue, chain: Chain, status: memoryview, value: int) -> None:
        status[0] = value
        queue.push(chain, _written_alone(chain))

    # What the disk gives back

    def _completed(self, batch: list[Request]) -> None:
        again: dict[int, VirtQueue] = {}
        for request in batch:
            queue, chain = request.owner.queue, request.owner.chain
            if self._full(queue):
                again[queue.index] = queue
            self._descriptors[queue.index] -= chain.descriptors + REQUEST_COST
        self._give_back(batch)
        for number, queue in enumerate(again.values()):
            if number:  # one turn at a time
                queue.kick_later()
            else:
                self.kick(queue)

    def _give_back(self, batch: list[Request]) -> None:
        queues: dict[int, VirtQueue] = {}
        for request in batch:
            queue, chain, status, written = request.owner
            if not queue.holds(chain):
                continue  # a reset came in between: that RAM is nobody's any more
            if queue.paused:
                self._late.append(request)
                continue
            status[0] = VIRTIO_BLK_S_OK if request.error is None else VIRTIO_BLK_S_IOERR
            if request.error is not None or written == 1:
                written = _written_alone(chain)
            queue.push(chain, written)
            queues[queue.index] = queue
        for queue in queues.values():
            queue.notify()

    # Life

    @property
    def busy(self) -> bool:
        return self.disk.busy

    def reset(self) -> None:
        for request in self.disk.give_up():
            queue, chain, _, _ = request.owner
            self._descriptors[queue.index] -= chain.descriptors + REQUEST_COST
        self._late.clear()
        self._set_writeback(1)

    def drain(self) -> None:
        """Before a save. Raises UserError."""
        self.disk.drain()
        if self._late:
            raise StateError(f"{self.disk.name}: its driver waits for requests and has forbidden DMA: try again later")


def _features(readonly: bool, queues: int) -> int:
    features = [
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
    ]
    features += [VIRTIO_BLK_F_RO] if readonly else [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    features += [VIRTIO_BLK_F_MQ] if queues > 1 else []
    return sum(1 << feature for feature in features)


def _split(readable: Sequence[memoryview]) -> tuple[bytes, list[memoryview]]:
    """The header, read once, and what follows it; a driver lays them out as it likes (section 2.6.4)."""
    if readable and len(readable[0]) == HEADER.size:  # as most do
        return bytes(readable[0]), list(readable[1:])
    header, rest = bytearray(), []
    for view in readable:
        wanted = HEADER.size - len(header)
        if wanted:
            header += view[:wanted]
            view = view[wanted:]
        if view:
            rest.append(view)
    return bytes(header), rest


def _written_alone(chain: Chain) -> int:
    """Bytes from the chain's first on that are written where only the status, its last, is."""
    return 1 if chain.writable_size == 1 else 0
