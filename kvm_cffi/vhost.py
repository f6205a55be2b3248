"""vhost as typed Python: the kernel serves virtqueues in the guest's memory, and only eventfds go to and fro.

    with VhostVsock() as vhost:
        vhost.set_owner()
        vhost.set_features(features)
        vhost.set_mem_table([(0, memory)])
        for index in range(2):
            vhost.set_vring_num(index, 128)
            vhost.set_vring_base(index, 0)
            vhost.set_vring_addr(index, desc, avail, used)
            vhost.set_vring_kick(index, kick)
            vhost.set_vring_call(index, call)
        vhost.set_guest_cid(3)
        vhost.set_running(True)

Source: <linux/vhost.h>, <linux/vhost_types.h>; the order is that of QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from kvm_cffi._call import KvmError as KvmError
from kvm_cffi._call import ioctl
from kvm_cffi._kvm import ffi
from kvm_cffi.descriptor import Descriptor
from kvm_cffi.mapping import address_of

NO_FD: Final = -1
"""Instead of an eventfd or a back end: none."""


class Vhost(Descriptor):
    """A descriptor of a vhost driver; a context manager. Raises OSError from the open, KvmError from ioctls. Once
    close() has returned the kernel touches no memory of the guest any more.

    Virtqueues are called vrings here, as in the header: split rings, numbered from 0 as the driver has them, which need
    not be the device's own numbers."""

    path: ClassVar[Path]
    module: ClassVar[str]
    """The kernel module that makes *path*."""

    def __init__(self) -> None:
        super().__init__(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))

    def set_owner(self) -> None:
        """VHOST_SET_OWNER, before all else: the addresses are those of this process. EBUSY: it has an owner."""
        ioctl(self.fd, "VHOST_SET_OWNER")

    def get_features(self) -> int:
        """VHOST_GET_FEATURES: those of virtio that the kernel implements, and its own (VHOST_F_LOG_ALL)."""
        features = ffi.new("uint64_t *")
        ioctl(self.fd, "VHOST_GET_FEATURES", features)
        return int(features[0])

    def set_features(self, features: int) -> None:
        """VHOST_SET_FEATURES: what the driver has agreed to. EOPNOTSUPP: more than get_features()."""
        ioctl(self.fd, "VHOST_SET_FEATURES", ffi.new("uint64_t *", features))

    def set_mem_table(self, regions: Sequence[tuple[int, memoryview]]) -> None:
        """VHOST_SET_MEM_TABLE: all of guest memory, by guest physical address. E2BIG: more regions than the module's
        max_mem_regions, 64."""
        table = ffi.new("struct vhost_memory *", {"regions": len(regions)})
        table.nregions = len(regions)
        for entry, (gpa, buffer) in zip(table.regions, regions, strict=True):
            entry.guest_phys_addr, entry.memory_size, entry.userspace_addr = gpa, buffer.nbytes, address_of(buffer)
        ioctl(self.fd, "VHOST_SET_MEM_TABLE", table)

    def set_vring_num(self, index: int, num: int) -> None:
        """VHOST_SET_VRING_NUM: how many descriptors it has. EBUSY, as the two that follow: it is being served."""
        self._vring("VHOST_SET_VRING_NUM", index, num)

    def set_vring_base(self, index: int, base: int) -> None:
        """VHOST_SET_VRING_BASE: the available index to go on at; the used index is that in the ring."""
        self._vring("VHOST_SET_VRING_BASE", index, base)

    def get_vring_base(self, index: int) -> int:
        """VHOST_GET_VRING_BASE: the available index that it has come to."""
        return self._vring("VHOST_GET_VRING_BASE", index, 0)

    def _vring(self, request: str, index: int, num: int) -> int:
        state = ffi.new("struct vhost_vring_state *", {"index": index, "num": num})
        ioctl(self.fd, request, state)
        return int(state.num)

    def set_vring_addr(self, index: int, desc: int, avail: int, used: int) -> None:
        """VHOST_SET_VRING_ADDR: where the three parts of the ring are in this process. EFAULT: not in the table."""
        addresses = ffi.new("struct vhost_vring_addr *")
        addresses.index = index
        addresses.desc_user_addr, addresses.avail_user_addr, addresses.used_user_addr = desc, avail, used
        ioctl(self.fd, "VHOST_SET_VRING_ADDR", addresses)

    def set_vring_kick(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_KICK: the eventfd by which the driver says "look"; the kernel never reads its count down."""
        self._file("VHOST_SET_VRING_KICK", index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_CALL: the eventfd that interrupts the driver."""
        self._file("VHOST_SET_VRING_CALL", index, fd)

    def _file(self, request: str, index: int, fd: int) -> None:
        ioctl(self.fd, request, ffi.new("struct vhost_vring_file *", {"index": index, "fd": fd}))


class VhostVsock(Vhost):
    """vsock: rings 0 and 1 are the receive and the transmit queue."""

    path = Path("/dev/vhost-vsock")
    module = "vhost_vsock"

    def set_guest_cid(self, cid: int) -> None:
        """VHOST_VSOCK_SET_GUEST_CID: the guest's address. EADDRINUSE: another guest has it; EINVAL: no guest's."""
        ioctl(self.fd, "VHOST_VSOCK_SET_GUEST_CID", ffi.new("uint64_t *", cid))

    def set_running(self, running: bool) -> None:
        """VHOST_VSOCK_SET_RUNNING: serve the rings, or touch them no more. EFAULT: one of them is not in memory."""
        ioctl(self.fd, "VHOST_VSOCK_SET_RUNNING", ffi.new("int *", running))


class VhostNet(Vhost):
    """net: rings 0 and 1 are the receive and the transmit queue of one pair."""

    path = Path("/dev/vhost-net")
    module = "vhost_net"

    def set_backend(self, index: int, fd: int) -> None:
        """VHOST_NET_SET_BACKEND: serve ring *index* from the tap *fd*, or with NO_FD touch it no more."""
        self._file("VHOST_NET_SET_BACKEND", index, fd)
