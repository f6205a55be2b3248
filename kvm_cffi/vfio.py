"""VFIO's group API as typed Python: Container, Group and VfioDevice mirror its descriptors. iommufd.py is
the newer way.

    with Container() as container, Group(Path("/dev/vfio/1")) as group:
        group.set_container(container)
        container.set_iommu()
        container.map_dma(0, memory)
        with group.device("0000:00:08.0") as device:
            device.read(device.region(constants.VFIO_PCI_CONFIG_REGION_INDEX), 0, 4)

Source: <linux/vfio.h>, Linux Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from kvm_cffi._call import KvmError, ioctl, ioctl_value
from kvm_cffi._kvm import ffi, lib
from kvm_cffi.descriptor import Descriptor
from kvm_cffi.mapping import address_of, map_memory
from kvm_cffi.vm import DeviceFd, Vm

CONTAINER: Final = Path("/dev/vfio/vfio")
_PAGE: Final = 4096
_HOT_RESET_DEV_ID, _HOT_RESET_DEV_ID_OWNED = 1, 2
"""VFIO_PCI_HOT_RESET_FLAG_…, which Debian 12's header has not."""


class Container(Descriptor):
    """An I/O address space, and the groups whose devices see it. Raises OSError from the open, KvmError from ioctls."""

    def __init__(self, path: Path = CONTAINER) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        version = ioctl_value(self.fd, "VFIO_GET_API_VERSION")
        if version != lib.VFIO_API_VERSION:
            self.close()
            raise KvmError(0, f"{path} speaks VFIO API version {version}, not {lib.VFIO_API_VERSION}")

    def has(self, extension: str) -> bool:
        """VFIO_CHECK_EXTENSION, of VFIO_TYPE1v2_IOMMU and its kin."""
        return ioctl_value(self.fd, "VFIO_CHECK_EXTENSION", getattr(lib, extension)) > 0

    def set_iommu(self) -> None:
        """VFIO_SET_IOMMU, type 1, version 2 where there is one; a group must be in the container. EPERM: the host's
        interrupts are not remapped."""
        kind = "VFIO_TYPE1v2_IOMMU" if self.has("VFIO_TYPE1v2_IOMMU") else "VFIO_TYPE1_IOMMU"
        ioctl_value(self.fd, "VFIO_SET_IOMMU", getattr(lib, kind))

    def iova_ranges(self) -> list[tuple[int, int]]:
        """The I/O virtual addresses that may be mapped, as (first, last); none where the kernel does not tell."""
        info = _whole_info(self.fd, "VFIO_IOMMU_GET_INFO", "struct vfio_iommu_type1_info")
        if not info.flags & lib.VFIO_IOMMU_INFO_CAPS:
            return []
        ranges: list[tuple[int, int]] = []
        for kind, at in _capabilities(info):
            if kind == lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                cap = ffi.cast("struct vfio_iommu_type1_info_cap_iova_range *", at)
                ranges += [(cap.iova_ranges[i].start, cap.iova_ranges[i].end) for i in range(cap.nr_iovas)]
        return ranges

    def map_dma(self, iova: int, buffer: memoryview) -> None:
        """VFIO_IOMMU_MAP_DMA: devices read and write *buffer*, whole pages, at *iova*. ENOMEM: RLIMIT_MEMLOCK."""
        dma = ffi.new("struct vfio_iommu_type1_dma_map *")
        dma.argsz = ffi.sizeof("struct vfio_iommu_type1_dma_map")
        dma.flags = lib.VFIO_DMA_MAP_FLAG_READ | lib.VFIO_DMA_MAP_FLAG_WRITE
        dma.vaddr, dma.iova, dma.size = address_of(buffer), iova, buffer.nbytes
        ioctl(self.fd, "VFIO_IOMMU_MAP_DMA", dma)

    def unmap_dma(self, iova: int, size: int) -> None:
        """VFIO_IOMMU_UNMAP_DMA of whole mappings in [iova, iova+size)."""
        dma = ffi.new("struct vfio_iommu_type1_dma_unmap *")
        dma.argsz = ffi.sizeof("struct vfio_iommu_type1_dma_unmap")
        dma.iova, dma.size = iova, size
        ioctl(self.fd, "VFIO_IOMMU_UNMAP_DMA", dma)


class Group(Descriptor):
    """An IOMMU group, /dev/vfio/N: who has it open has all of its devices. EBUSY from the open: another has it."""

    def __init__(self, path: Path) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    @property
    def viable(self) -> bool:
        """Whether each of its devices is bound to VFIO or to nothing."""
        status = ffi.new("struct vfio_group_status *")
        status.argsz = ffi.sizeof("struct vfio_group_status")
        ioctl(self.fd, "VFIO_GROUP_GET_STATUS", status)
        return bool(status.flags & lib.VFIO_GROUP_FLAGS_VIABLE)

    def set_container(self, container: Container) -> None:
        """VFIO_GROUP_SET_CONTAINER."""
        ioctl(self.fd, "VFIO_GROUP_SET_CONTAINER", ffi.new("int *", container.fd))

    def device(self, name: str) -> VfioDevice:
        """VFIO_GROUP_GET_DEVICE_FD: the device that sysfs calls *name*."""
        fd = ioctl(self.fd, "VFIO_GROUP_GET_DEVICE_FD", ffi.new("char[]", name.encode()))
        try:
            return VfioDevice(fd)
        except BaseException:
            os.close(fd)
            raise


@dataclass(frozen=True)
class VfioRegion:
    """A part of a device: a BAR, its configuration space. Sizes and offsets are in bytes."""

    index: int
    size: int
    offset: int
    """Where it begins in the device's file."""
    readable: bool = True
    writable: bool = True
    mappable: tuple[tuple[int, int], ...] = ()
    """The (offset, size) in it that can be mapped."""


@dataclass(frozen=True)
class IrqInfo:
    """An interrupt of a device: INTx, MSI or MSI-X."""

    count: int
    maskable: bool = False
    automasked: bool = False
    """It masks itself when it triggers: level-triggered."""
    resizable: bool = True
    """Its vectors can grow in number while some are enabled."""


class VfioDevice(Descriptor):
    """A device that VFIO has given: its regions and interrupts."""

    def __init__(self, fd: int) -> None:
        """*fd* is its own from then on, and the caller's where this raises KvmError."""
        info = ffi.new("struct vfio_device_info *")
        info.argsz = ffi.sizeof("struct vfio_device_info")
        ioctl(fd, "VFIO_DEVICE_GET_INFO", info)
        self.can_reset = bool(info.flags & lib.VFIO_DEVICE_FLAGS_RESET)
        self.is_pci = bool(info.flags & lib.VFIO_DEVICE_FLAGS_PCI)
        self._regions, self._irqs = info.num_regions, info.num_irqs
        super().__init__(fd)

    def region(self, index: int) -> VfioRegion | None:
        """VFIO_DEVICE_GET_REGION_INFO; None where the device has no such region."""
        if index >= self._regions:
            return None
        try:
            info = _whole_info(self.fd, "VFIO_DEVICE_GET_REGION_INFO", "struct vfio_region_info", index)
        except KvmError:  # the VGA region of what is no VGA
            return None
        if not info.size:
            return None
        mappable: list[tuple[int, int]] = []
        if info.flags & lib.VFIO_REGION_INFO_FLAG_MMAP:
            mappable = [(0, info.size)]
            if info.flags & lib.VFIO_REGION_INFO_FLAG_CAPS:
                for kind, at in _capabilities(info):
                    if kind == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
                        cap = ffi.cast("struct vfio_region_info_cap_sparse_mmap *", at)
                        mappable = [(cap.areas[i].offset, cap.areas[i].size) for i in range(cap.nr_areas)]
        return VfioRegion(
            index,
            info.size,
            info.offset,
            bool(info.flags & lib.VFIO_REGION_INFO_FLAG_READ),
            bool(info.flags & lib.VFIO_REGION_INFO_FLAG_WRITE),
            tuple(mappable),
        )

    def read(self, region: VfioRegion, offset: int, size: int) -> bytes:
        """What is there; short where the region ends."""
        return os.pread(self.fd, size, region.offset + offset)

    def write(self, region: VfioRegion, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, region.offset + offset)

    def map(self, region: VfioRegion, offset: int, size: int) -> memoryview:
        """Whole pages of a region, until the last view of them is gone. Raises OSError."""
        alignment = min(1 << (size - 1).bit_length(), 1 << 30) if size > _PAGE else _PAGE
        return map_memory(size, alignment, self.fd, region.offset + offset)

    def irq(self, index: int) -> IrqInfo:
        """VFIO_DEVICE_GET_IRQ_INFO of VFIO_PCI_INTX_IRQ_INDEX and its kin; a count of 0 where the device has none."""
        info = ffi.new("struct vfio_irq_info *")
        info.argsz, info.index = ffi.sizeof("struct vfio_irq_info"), index
        if index >= self._irqs:
            return IrqInfo(0)
        try:
            ioctl(self.fd, "VFIO_DEVICE_GET_IRQ_INFO", info)
        except KvmError as error:
            if error.errno != errno.EINVAL:  # errors of the bus (AER), of what is no PCI Express
                raise
            return IrqInfo(0)
        return IrqInfo(
            info.count,
            bool(info.flags & lib.VFIO_IRQ_INFO_MASKABLE),
            bool(info.flags & lib.VFIO_IRQ_INFO_AUTOMASKED),
            not info.flags & lib.VFIO_IRQ_INFO_NORESIZE,
        )

    def set_triggers(self, index: int, fds: Sequence[int | None]) -> int:
        """Enable interrupt *index*: vector N signals eventfd fds[N]. 0; or how many vectors the host could give, where
        those are fewer, and nothing has changed."""
        return self._set_irqs(index, lib.VFIO_IRQ_SET_ACTION_TRIGGER, fds)

    def disable(self, index: int) -> None:
        """Interrupt *index* off: all of its vectors."""
        self._set_irqs(index, lib.VFIO_IRQ_SET_ACTION_TRIGGER, None, count=0)

    def mask(self, index: int) -> None:
        self._set_irqs(index, lib.VFIO_IRQ_SET_ACTION_MASK, None)

    def unmask(self, index: int) -> None:
        """Let a level-triggered interrupt signal again: at once, if it is still up."""
        self._set_irqs(index, lib.VFIO_IRQ_SET_ACTION_UNMASK, None)

    def unmask_by(self, index: int, fd: int) -> None:
        """From now on eventfd *fd*, when written, does what unmask() does."""
        self._set_irqs(index, lib.VFIO_IRQ_SET_ACTION_UNMASK, [fd])

    def _set_irqs(self, index: int, action: int, fds: Sequence[int | None] | None, count: int = 1) -> int:
        data = (
            b""
            if fds is None
            else b"".join((-1 if fd is None else fd).to_bytes(4, "little", signed=True) for fd in fds)
        )
        irq_set = ffi.new("struct vfio_irq_set *", {"data": len(data)})
        irq_set.argsz = ffi.sizeof("struct vfio_irq_set") + len(data)
        irq_set.flags = action | (lib.VFIO_IRQ_SET_DATA_NONE if fds is None else lib.VFIO_IRQ_SET_DATA_EVENTFD)
        irq_set.index, irq_set.start, irq_set.count = index, 0, count if fds is None else len(fds)
        ffi.memmove(irq_set.data, data, len(data))
        return ioctl(self.fd, "VFIO_DEVICE_SET_IRQS", irq_set)

    def reset(self) -> None:
        """VFIO_DEVICE_RESET; only where can_reset."""
        ioctl(self.fd, "VFIO_DEVICE_RESET")

    def hot_reset_groups(self) -> frozenset[int] | None:
        """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the groups of all devices that a reset of its bus would reset; None for a
        device of /dev/iommu, all of whose bus is there too. ENODEV: the bus has no reset; EPERM: it is not all ours."""
        count = 0
        while True:
            info = ffi.new("struct vfio_pci_hot_reset_info *", {"devices": count})
            size = ffi.sizeof("struct vfio_pci_hot_reset_info")
            info.argsz = size + count * ffi.sizeof("struct vfio_pci_dependent_device")
            try:
                ioctl(self.fd, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", info)
            except KvmError as error:
                if error.errno != errno.ENOSPC or info.count <= count:
                    raise
                count = info.count
                continue
            if info.flags & _HOT_RESET_DEV_ID:
                if not info.flags & _HOT_RESET_DEV_ID_OWNED:
                    raise KvmError(errno.EPERM, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO")
                return None
            return frozenset(info.devices[i].group_id for i in range(min(info.count, count)))

    def hot_reset(self, groups: Sequence[Group]) -> None:
        """VFIO_DEVICE_PCI_HOT_RESET: reset its bus, for which the caller shows that it has *groups*."""
        reset = ffi.new("struct vfio_pci_hot_reset *", {"group_fds": len(groups)})
        reset.argsz = ffi.sizeof("struct vfio_pci_hot_reset") + 4 * len(groups)
        reset.count = len(groups)
        for number, group in enumerate(groups):
            reset.group_fds[number] = group.fd
        ioctl(self.fd, "VFIO_DEVICE_PCI_HOT_RESET", reset)


class KvmVfio:
    """KVM's VFIO device: tells KVM of the groups whose devices the guest has, for what depends on it (the coherence of
    their DMA, and who holds the VM). Linux Documentation/virt/kvm/devices/vfio.rst."""

    def __init__(self, vm: Vm) -> None:
        self._device: DeviceFd = vm.create_device(lib.KVM_DEV_TYPE_VFIO)

    def add(self, fd: int) -> None:
        """KVM_DEV_VFIO_GROUP_ADD of a group, or of a device's own file: KVM_DEV_VFIO_FILE_ADD, the same number."""
        self._device.set_attr(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, fd.to_bytes(4, "little"))

    def remove(self, fd: int) -> None:
        """KVM_DEV_VFIO_GROUP_DEL."""
        self._device.set_attr(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_DEL, fd.to_bytes(4, "little"))

    def close(self) -> None:
        self._device.close()


_rooms: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
"""What a structure that was cast is in, as long as the structure is there (cffi, "Reference: conversions")."""


def _whole_info(fd: int, request: str, kind: str, index: int | None = None) -> Any:
    """A structure that the kernel may want longer than it is, with the capabilities behind it."""
    size = ffi.sizeof(kind)
    while True:
        room = ffi.new("char[]", size)
        info = ffi.cast(f"{kind} *", room)
        _rooms[info] = room
        info.argsz = size
        if index is not None:
            info.index = index
        ioctl(fd, request, info)
        if info.argsz <= size:
            return info
        size = info.argsz


def _capabilities(info: Any) -> Iterator[tuple[int, Any]]:
    """(id, where) of the capabilities of a structure that _whole_info() has filled."""
    start, offset = ffi.cast("char *", info), info.cap_offset
    while 0 < offset < info.argsz:
        header = ffi.cast("struct vfio_info_cap_header *", start + offset)
        yield header.id, start + offset
        offset = header.next
