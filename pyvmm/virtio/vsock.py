"""vhost-vsock: sockets between guest and host (AF_VSOCK), which the host's kernel serves (virtio 1.2, section 5.10).

Queues: receive and transmit, which vhost has, and events, which we have: after a restore the driver hears that all its
connections are gone (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET), and the host's ends hear of it because the server is another.
Configuration: guest_cid, 64 bits. The guest is at that address for the host's programs, the host at 2 for the guest's.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

from pyvmm.errors import UserError
from pyvmm.state import Plain, StateError
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_VSOCK, VIRTIO_RING_F_EVENT_IDX
from pyvmm.virtio.device import SPLIT_RING_FEATURES, VirtioDevice
from pyvmm.virtio.offload import Offload, OffloadedQueue
from pyvmm.virtio.queue import VirtQueue
from pyvmm.virtio.vhost import RingServers, VsockServer

# linux/virtio_vsock.h, linux/vm_sockets.h
VIRTIO_VSOCK_F_SEQPACKET: Final = 1
VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: Final = (0).to_bytes(4, "little")
VMADDR_CID_HOST: Final = 2
CID_MAX: Final = 0xFFFFFFFE
"""vhost takes 32 bits, and all ones are VMADDR_CID_ANY."""

RECEIVE, TRANSMIT, EVENT = 0, 1, 2


class VirtioVsock(VirtioDevice):
    """Sockets between guest and host (AF_VSOCK), served by the host's kernel; the guest's address is *cid*."""

    device_id = VIRTIO_ID_VSOCK
    class_code = 0x028000
    queue_sizes = (128, 128, 64)
    STATE: ClassVar[tuple[str, ...]] = ("reset_due",)

    def __init__(self, cid: int, vhost: RingServers, trace: Channel = OFF) -> None:
        if not VMADDR_CID_HOST < cid <= CID_MAX:
            raise UserError(f"vhost-vsock: cid={cid}: a guest has one of 3 to {CID_MAX}, and 2 is the host")
        self._vhost = vhost
        self._cid = cid
        self._offload = Offload(vhost, self._open(), self._begin, self._end)
        super().__init__(trace)
        ours = SPLIT_RING_FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_VSOCK_F_SEQPACKET
        self.features = ours & self._server.get_features()
        self.config: bytes = cid.to_bytes(8, "little")
        self.reset_due = False
        """The driver is to hear that its connections are gone, and has had no buffer for that."""

    @property
    def cid(self) -> int:
        """The guest's address."""
        return self._cid

    def _open(self) -> VsockServer:
        """Raises UserError."""
        server = self._vhost.vsock()
        try:
            server.set_guest_cid(self._cid)
        except OSError as error:
            self._vhost.release(server)
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"vhost-vsock: cid={self._cid} is another guest's: choose another number") from None
            raise UserError(f"vhost-vsock: cid={self._cid}: {error.strerror}: choose another number") from None
        self._server = server
        self._used = False
        return server

    def make_queue(self, index: int, size: int) -> VirtQueue:
        return super().make_queue(index, size) if index == EVENT else self._offload.queue(index, size)

    def _begin(self) -> None:
        self._used = True
        self._server.set_running(True)

    def _end(self) -> None:
        self._server.set_running(False)

    def handle_queue(self, queue: VirtQueue) -> None:
        if isinstance(queue, OffloadedQueue):
            queue.ring_doorbell()
        elif self.reset_due:
            self._tell_reset(queue)

    def _tell_reset(self, queue: VirtQueue) -> None:
        chain = queue.pop_or_ask()
        if chain is not None:
            queue.push(chain, chain.write(VIRTIO_VSOCK_EVENT_TRANSPORT_RESET))
            queue.notify()
            self.reset_due = False

    def reset(self) -> None:
        self.reset_due = False

    def check_saved(self, saved: Plain) -> None:
        if isinstance(saved, dict) and saved.get("config") != self.config:
            was = saved.get("config")
            cid = int.from_bytes(was, "little") if isinstance(was, bytes) else was
            raise StateError(f"vhost-vsock had cid={cid} in this snapshot, which its guest knows, and must have it")

    def restored(self) -> None:
        """What the host's ends have sent since belongs to a time that is not any more: they begin again too."""
        self._offload.take_back()
        if self._used:
            self._vhost.release(self._server)
            self._offload.server = self._open()
        self.reset_due = self.driver_ok

    def close(self) -> None:
        self._offload.close()
        self._vhost.release(self._server)
