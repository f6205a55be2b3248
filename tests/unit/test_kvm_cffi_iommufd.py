"""kvm_cffi.iommufd against a model of /dev/iommu: what is asked, in which structures, and what comes back."""

from __future__ import annotations

import errno
import gc
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvm_cffi import KvmError, iommufd, vfio
from kvm_cffi._kvm import ffi
from kvm_cffi.iommufd import IommuFd, open_device

IOAS = 5
RANGES = [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]


class Kernel:
    """Of Linux 6.12: keeps what it was asked by the number of the request, and answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.error = 0

    def kvm_cffi_ioctl(self, fd: int, request: int, argument: Any) -> int:
        (size,) = struct.unpack("<I", bytes(ffi.buffer(argument, 4)))
        data = bytes(ffi.buffer(argument, size))
        self.asked.append((request, data))
        if self.error:
            ffi.errno = self.error
            return -1
        if request == 0x3B81:
            ffi.buffer(argument, 12)[8:12] = struct.pack("<I", IOAS)
        if request == 0x3B84:
            _, ioas, room, _, where, _ = struct.unpack("<IIIIQQ", data)
            assert ioas == IOAS and room >= len(RANGES)
            packed = b"".join(struct.pack("<QQ", *one) for one in RANGES)
            ffi.buffer(ffi.cast("char *", where), len(packed))[:] = packed
            ffi.buffer(argument, 12)[8:12] = struct.pack("<I", len(RANGES))
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(iommufd, "lib", SimpleNamespace(kvm_cffi_ioctl=kernel.kvm_cffi_ioctl))
    yield kernel


def test_an_address_space(kernel: Kernel) -> None:
    with IommuFd(Path("/dev/null")) as iommu:
        assert iommu.ioas == IOAS and kernel.asked.pop() == (0x3B81, struct.pack("<III", 12, 0, 0))
        assert iommu.iova_ranges() == RANGES
        iommu.map_dma(0x100000, memoryview(bytearray(0x2000)))
        request, data = kernel.asked.pop()
        size, flags, ioas, _, address, length, iova = struct.unpack("<IIIIQQQ", data)
        assert (request, size, flags, ioas, length, iova) == (0x3B85, 40, 7, IOAS, 0x2000, 0x100000) and address
        iommu.unmap_dma(0x100000, 0x2000)
        assert kernel.asked.pop() == (0x3B86, struct.pack("<IIQQ", 24, IOAS, 0x100000, 0x2000))
        kernel.error = errno.ENOMEM
        with pytest.raises(KvmError, match="IOMMU_IOAS_MAP: Cannot allocate memory"):
            iommu.map_dma(0, memoryview(bytearray(0x1000)))


def test_what_does_not_open_leaves_nothing_open(kernel: Kernel) -> None:
    kernel.error = errno.ENOMEM
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError):
        IommuFd(Path("/dev/null"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_is_bound_after_kvm_has_heard_of_it(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(iommufd, "VfioDevice", made.append)
    iommu = IommuFd(Path("/dev/null"))
    kernel.asked.clear()
    heard: list[int] = []
    open_device(Path("/dev/null"), iommu, lambda fd: heard.append(len(kernel.asked)))
    (fd,) = made
    assert heard == [0]
    assert kernel.asked == [
        (0x3B76, struct.pack("<IIiI", 16, 0, iommu.fd, 0)),
        (0x3B77, struct.pack("<III", 12, 0, IOAS)),
    ]
    os.close(fd)
    kernel.error = errno.EPERM
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match="VFIO_DEVICE_BIND_IOMMUFD"):
        open_device(Path("/dev/null"), iommu)
    assert len(os.listdir("/proc/self/fd")) == before
    iommu.close()


def test_a_device_that_says_nothing_of_itself_is_closed_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, request: str, argument: Any) -> int:
        raise KvmError(errno.ENODEV, request)

    monkeypatch.setattr(vfio, "ioctl", refuse)
    closed: list[int] = []
    close = os.close

    def counted(fd: int) -> None:
        closed.append(fd)
        close(fd)

    iommu = IommuFd(Path("/dev/null"))
    monkeypatch.setattr(os, "close", counted)
    undone: list[tuple[int, bool]] = []
    with pytest.raises(KvmError, match="VFIO_DEVICE_GET_INFO"):
        open_device(Path("/dev/null"), iommu, undo=lambda fd: undone.append((fd, fd in closed)))
    gc.collect()
    ((fd, was_closed),) = undone
    assert not was_closed, "KVM knows it by its descriptor"
    assert closed == [fd], "whoever has that number next keeps it"
    iommu.close()
