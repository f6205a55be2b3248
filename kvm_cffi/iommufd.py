"""/dev/iommu and the devices of /dev/vfio/devices: the newer way to what Container and Group of kvm_cffi.vfio do.

    with IommuFd() as iommu:
        iommu.map_dma(0, memory)
        with open_device(Path("/dev/vfio/devices/vfio0"), iommu) as device: ...

Debian 12's headers are older than it, so its numbers and structures are here. Source: <linux/iommufd.h> and
<linux/vfio.h> of Linux 6.6, Documentation/userspace-api/iommufd.rst, Documentation/driver-api/vfio.rst ("VFIO device
cdev").
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvm_cffi._call import KvmError
from kvm_cffi._kvm import ffi, lib
from kvm_cffi.descriptor import Descriptor
from kvm_cffi.mapping import address_of
from kvm_cffi.vfio import VfioDevice

DEVICE: Final = Path("/dev/iommu")
_TYPE: Final = ord(";") << 8
"""Of _IO(';', number)."""
_NUMBERS: Final = {
    "IOMMU_DESTROY": _TYPE | 0x80,
    "IOMMU_IOAS_ALLOC": _TYPE | 0x81,
    "IOMMU_IOAS_IOVA_RANGES": _TYPE | 0x84,
    "IOMMU_IOAS_MAP": _TYPE | 0x85,
    "IOMMU_IOAS_UNMAP": _TYPE | 0x86,
    "VFIO_DEVICE_BIND_IOMMUFD": _TYPE | 118,
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": _TYPE | 119,
}
_ALLOC: Final = struct.Struct("<III")  # size, flags, out_ioas_id
_DESTROY: Final = struct.Struct("<II")  # size, id
_RANGES: Final = struct.Struct("<IIIIQQ")  # size, ioas_id, num_iovas, reserved, allowed_iovas, out_iova_alignment
_RANGE: Final = struct.Struct("<QQ")  # start, last
_MAP: Final = struct.Struct("<IIIIQQQ")  # size, flags, ioas_id, reserved, user_va, length, iova
_UNMAP: Final = struct.Struct("<IIQQ")  # size, ioas_id, iova, length
_BIND: Final = struct.Struct("<IIiI")  # argsz, flags, iommufd, out_devid
_ATTACH: Final = struct.Struct("<III")  # argsz, flags, pt_id
FIXED_IOVA, WRITEABLE, READABLE = 1, 2, 4
"""IOMMU_IOAS_MAP_…"""
_MOST_RANGES: Final = 256
"""Far more than the reserved regions of any host leave; with too little room the kernel says EMSGSIZE."""


def _ioctl(fd: int, request: str, layout: struct.Struct, *fields: int) -> tuple[int, ...]:
    """With a structure whose first field is its size; what the kernel has made of it. Raises KvmError."""
    room = ffi.new("char[]", layout.pack(layout.size, *fields))
    if lib.kvm_cffi_ioctl(fd, _NUMBERS[request], room) < 0:
        raise KvmError(ffi.errno, request)
    return layout.unpack(bytes(ffi.buffer(room, layout.size)))


class IommuFd(Descriptor):
    """An I/O address space of /dev/iommu, with the face of a vfio.Container. Raises OSError from the open."""

    def __init__(self, path: Path = DEVICE) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            _, _, self.ioas = _ioctl(self.fd, "IOMMU_IOAS_ALLOC", _ALLOC, 0, 0)
        except KvmError:
            self.close()
            raise

    def iova_ranges(self) -> list[tuple[int, int]]:
        """The I/O virtual addresses that may be mapped, as (first, last), for the devices that are attached."""
        room = ffi.new("char[]", _MOST_RANGES * _RANGE.size)
        where = int(ffi.cast("uintptr_t", room))
        _, _, found, *_ = _ioctl(self.fd, "IOMMU_IOAS_IOVA_RANGES", _RANGES, self.ioas, _MOST_RANGES, 0, where, 0)
        return list(_RANGE.iter_unpack(bytes(ffi.buffer(room, found * _RANGE.size))))

    def map_dma(self, iova: int, buffer: memoryview) -> None:
        """IOMMU_IOAS_MAP: devices read and write *buffer*, whole pages, at *iova*. ENOMEM: RLIMIT_MEMLOCK; EFAULT: it
        is a device's own memory, which this way knows nothing of."""
        flags = FIXED_IOVA | WRITEABLE | READABLE
        _ioctl(self.fd, "IOMMU_IOAS_MAP", _MAP, flags, self.ioas, 0, address_of(buffer), buffer.nbytes, iova)

    def unmap_dma(self, iova: int, size: int) -> None:
        """IOMMU_IOAS_UNMAP of whole mappings in [iova, iova+size)."""
        _ioctl(self.fd, "IOMMU_IOAS_UNMAP", _UNMAP, self.ioas, iova, size)


def open_device(
    path: Path,
    iommu: IommuFd,
    before: Callable[[int], None] = lambda fd: None,
    undo: Callable[[int], None] = lambda fd: None,
) -> VfioDevice:
    """The device of /dev/vfio/devices/vfioN, whose DMA reaches what *iommu* maps. *before* gets its descriptor before
    it is bound, which is when KVM wants to hear of it; *undo* gets it where something fails, before it is closed, for
    KVM would keep it open. Raises OSError; EPERM: this host does not remap interrupts."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        before(fd)
        _ioctl(fd, "VFIO_DEVICE_BIND_IOMMUFD", _BIND, 0, iommu.fd, 0)
        _ioctl(fd, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", _ATTACH, 0, iommu.ioas)
        return VfioDevice(fd)
    except BaseException:
        undo(fd)
        os.close(fd)
        raise
