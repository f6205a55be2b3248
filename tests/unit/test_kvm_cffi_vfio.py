"""kvm_cffi.vfio against the kernel's structures: those that grow, their capabilities, and what is sent."""

from __future__ import annotations

import errno
import gc
import struct
from pathlib import Path
from typing import Any

import pytest

from kvm_cffi import KvmError, constants, vfio
from kvm_cffi._kvm import ffi
from kvm_cffi.vfio import Container, IrqInfo, VfioDevice, VfioRegion


class Kernel:
    """Answers ioctls with bytes, as far as the caller has room, and keeps what it was given."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.sent: list[tuple[str, bytes]] = []

    def __call__(self, fd: int, request: str, argument: Any) -> int:
        room = struct.unpack("<I", bytes(ffi.buffer(ffi.cast("char *", argument), 4)))[0]
        self.sent.append((request, bytes(ffi.buffer(ffi.cast("char *", argument), room))))
        answer = self.answers.get(request, b"")
        ffi.memmove(argument, answer[:room], min(room, len(answer)))
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(vfio, "ioctl", kernel)
    return kernel


def a_device(kernel: Kernel) -> VfioDevice:
    kernel.answers["VFIO_DEVICE_GET_INFO"] = struct.pack(
        "<IIII", 16, constants.VFIO_DEVICE_FLAGS_RESET | constants.VFIO_DEVICE_FLAGS_PCI, 9, 5
    )
    device = VfioDevice(-1)
    assert device.can_reset and device.is_pci
    return device


def test_the_numbers_of_the_header() -> None:
    """_IO(';', 100 + n)."""
    assert constants.VFIO_GET_API_VERSION == 0x3B64
    assert constants.VFIO_DEVICE_SET_IRQS == 0x3B6E
    assert constants.VFIO_IOMMU_MAP_DMA == 0x3B71


def test_a_region_with_sparse_pieces(kernel: Kernel) -> None:
    device = a_device(kernel)
    flags = 1 | 2 | constants.VFIO_REGION_INFO_FLAG_MMAP | constants.VFIO_REGION_INFO_FLAG_CAPS
    other = struct.pack("<HHI", constants.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, 40)
    sparse = struct.pack(
        "<HHIIIQQQQ", constants.VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, 0, 2, 0, 0, 0x2000, 0x3000, 0x1000
    )
    size = 32 + len(other) + len(sparse)
    kernel.answers["VFIO_DEVICE_GET_REGION_INFO"] = (
        struct.pack("<IIIIQQ", size, flags, 2, 32, 0x4000, 2 << 40) + other + sparse
    )
    assert device.region(2) == VfioRegion(2, 0x4000, 2 << 40, True, True, ((0, 0x2000), (0x3000, 0x1000)))
    rooms = [
        struct.unpack("<I", data[:4])[0] for request, data in kernel.sent if request == "VFIO_DEVICE_GET_REGION_INFO"
    ]
    assert rooms == [32, size], "asked again with room for all of it"
    assert device.region(9) is None


def test_a_region_that_is_mapped_whole_or_not_at_all(kernel: Kernel) -> None:
    device = a_device(kernel)
    for flags, mappable in ((constants.VFIO_REGION_INFO_FLAG_MMAP | 1, ((0, 0x1000),)), (1, ())):
        kernel.answers["VFIO_DEVICE_GET_REGION_INFO"] = struct.pack("<IIIIQQ", 32, flags, 0, 0, 0x1000, 0)
        assert device.region(0) == VfioRegion(0, 0x1000, 0, True, False, mappable)
    kernel.answers["VFIO_DEVICE_GET_REGION_INFO"] = struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)
    assert device.region(0) is None


def test_interrupts(kernel: Kernel) -> None:
    device = a_device(kernel)
    kernel.answers["VFIO_DEVICE_GET_IRQ_INFO"] = struct.pack("<IIII", 16, 1 | constants.VFIO_IRQ_INFO_NORESIZE, 2, 65)
    assert device.irq(2) == IrqInfo(65, resizable=False)
    device.set_triggers(2, [7, None])
    trigger = constants.VFIO_IRQ_SET_ACTION_TRIGGER
    flags = trigger | constants.VFIO_IRQ_SET_DATA_EVENTFD
    assert kernel.sent[-1] == ("VFIO_DEVICE_SET_IRQS", struct.pack("<IIIIIii", 28, flags, 2, 0, 2, 7, -1))
    device.disable(2)
    assert kernel.sent[-1][1] == struct.pack("<IIIII", 20, trigger | constants.VFIO_IRQ_SET_DATA_NONE, 2, 0, 0)
    device.unmask_by(0, 9)
    flags = constants.VFIO_IRQ_SET_ACTION_UNMASK | constants.VFIO_IRQ_SET_DATA_EVENTFD
    assert kernel.sent[-1][1] == struct.pack("<IIIIIi", 24, flags, 0, 0, 1, 9)


def test_the_addresses_that_an_iommu_maps(kernel: Kernel) -> None:
    container = Container.__new__(Container)
    container.fd = -1
    header = struct.pack("<IIQI4x", 80, constants.VFIO_IOMMU_INFO_CAPS, 0x1000, 24)
    migration = struct.pack("<HHI16x", 2, 1, 48)
    ranges = struct.pack("<HHIIIQQ", constants.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, 0, 1, 0, 0, 0xFEDFFFFF)
    kernel.answers["VFIO_IOMMU_GET_INFO"] = header + migration + ranges
    assert container.iova_ranges() == [(0, 0xFEDFFFFF)]
    kernel.answers["VFIO_IOMMU_GET_INFO"] = struct.pack("<IIQI4x", 24, 0, 0x1000, 0)
    assert container.iova_ranges() == []
    container.map_dma(0x100000, memoryview(bytearray(0x2000)))
    argsz, flags, vaddr, iova, size = struct.unpack("<IIQQQ", kernel.sent[-1][1])
    assert (argsz, flags, iova, size) == (32, 3, 0x100000, 0x2000) and vaddr
    container.unmap_dma(0x100000, 0x2000)
    assert struct.unpack("<IIQQ", kernel.sent[-1][1]) == (24, 0, 0x100000, 0x2000)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_was_never_open_closes_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Container(tmp_path / "none")
    gc.collect()


def test_the_groups_of_a_bus_and_its_reset(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = a_device(kernel)
    devices = struct.pack("<IHBB", 7, 0, 1, 0) + struct.pack("<IHBB", 9, 0, 1, 1)

    def tell(fd: int, request: str, argument: Any) -> int:
        room = struct.unpack("<I", bytes(ffi.buffer(ffi.cast("char *", argument), 4)))[0]
        result = kernel(fd, request, argument)
        if request == "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO" and room < 12 + len(devices):
            raise KvmError(28, request)
        return result

    monkeypatch.setattr(vfio, "ioctl", tell)
    kernel.answers["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = struct.pack("<III", 28, 0, 2) + devices
    assert device.hot_reset_groups() == frozenset({7, 9})
    kernel.answers["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = struct.pack("<III", 28, 3, 2) + devices
    assert device.hot_reset_groups() is None
    kernel.answers["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = struct.pack("<III", 28, 1, 2) + devices
    with pytest.raises(KvmError):
        device.hot_reset_groups()
    groups = [vfio.Group.__new__(vfio.Group) for _ in range(2)]
    for number, group in enumerate(groups, 40):
        group.fd = number
    device.hot_reset(groups)
    assert kernel.sent[-1][1] == struct.pack("<IIIii", 20, 0, 2, 40, 41)
    for group in groups:
        group.fd = -1


def test_what_is_no_pci_express_has_no_errors(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = a_device(kernel)

    def refuse(fd: int, request: str, argument: Any) -> int:
        raise KvmError(errno.EINVAL, request)

    monkeypatch.setattr(vfio, "ioctl", refuse)
    assert device.irq(constants.VFIO_PCI_ERR_IRQ_INDEX) == IrqInfo(0)
