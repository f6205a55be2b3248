"""The configuration space that a guest sees of a device of the host: by a mask, a bit is the device's or ours.

  0x00-0x3F  ours, made of what the device says; but STATUS is the device's, less the capability list's bit
  0x40-0xFF  the device's, less the capabilities' links, MSI and MSI-X
  0x100-     the device's, less the links; what would let a guest size or add functions is left out: SR-IOV, ARI,
             resizable BARs

What the guest writes to the device goes through VFIO's own filter (drivers/vfio/pci/vfio_pci_config.c) besides.
PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification 3.0, section 7.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.regs import (
    PCI_CAP_ID_AF,
    PCI_CAP_ID_MSI,
    PCI_CAP_ID_MSIX,
    PCI_CAP_ID_PM,
    PCI_CAP_ID_SSVID,
    PCI_CAP_ID_VNDR,
    PCI_CAP_ID_VPD,
    PCI_CAPABILITY_LIST,
    PCI_CFG_SPACE_EXP_SIZE,
    PCI_CFG_SPACE_SIZE,
    PCI_EXT_CAP_ID_ARI,
    PCI_EXT_CAP_ID_REBAR,
    PCI_EXT_CAP_ID_SRIOV,
    PCI_EXT_CAP_ID_VF_REBAR,
    PCI_MSI_FLAGS_64BIT,
    PCI_MSI_FLAGS_MASKBIT,
    PCI_STATUS,
    PCI_STATUS_CAP_LIST,
    PCI_STD_HEADER_SIZEOF,
)

Read = Callable[[int, int], bytes]
Write = Callable[[int, bytes], None]

HIDDEN: Final = frozenset((PCI_EXT_CAP_ID_ARI, PCI_EXT_CAP_ID_SRIOV, PCI_EXT_CAP_ID_REBAR, PCI_EXT_CAP_ID_VF_REBAR))
OURS: Final = frozenset((PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX))
LENGTHS: Final = {PCI_CAP_ID_PM: 8, PCI_CAP_ID_VPD: 8, PCI_CAP_ID_SSVID: 8, PCI_CAP_ID_MSIX: 12, PCI_CAP_ID_AF: 6}
"""Of the capabilities that have always the same, in bytes."""


class ExtendedCapability(NamedTuple):
    """What is at an offset from 0x100 up."""

    offset: int
    cap_id: int
    version: int


def capabilities(image: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """(offset, ID) of each capability of a configuration space, each once, however its list is broken."""
    seen: set[int] = set()
    at = image[PCI_CAPABILITY_LIST] & 0xFC if image[PCI_STATUS] & PCI_STATUS_CAP_LIST else 0
    while at >= PCI_STD_HEADER_SIZEOF and at not in seen:
        seen.add(at)
        yield at, image[at]
        at = image[at + 1] & 0xFC


def extended_capabilities(image: bytes | bytearray) -> Iterator[ExtendedCapability]:
    """The extended capabilities likewise; none in 256 bytes."""
    seen: set[int] = set()
    at = PCI_CFG_SPACE_SIZE
    while PCI_CFG_SPACE_SIZE <= at <= len(image) - 4 and at not in seen:
        header = int.from_bytes(image[at : at + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return
        seen.add(at)
        yield ExtendedCapability(at, header & 0xFFFF, header >> 16 & 0xF)
        at = header >> 20 & 0xFFC


class HostConfigSpace(ConfigSpace):
    """*image* is all of the device's own, 256 bytes or 4096; *read* (offset, size) and *write* (offset, data) reach it,
    and never raise."""

    def __init__(self, image: bytes, read: Read, write: Write) -> None:
        size = PCI_CFG_SPACE_EXP_SIZE if len(image) >= PCI_CFG_SPACE_EXP_SIZE else PCI_CFG_SPACE_SIZE
        image = image[:size].ljust(size, b"\0")
        super().__init__(size)
        self._host_read, self._host_write = read, write
        self.host = bytearray(b"\xff" * size)
        """Which bits come from the device, and go to it."""
        self.data[:] = image
        self.host[:PCI_STD_HEADER_SIZEOF] = bytes(PCI_STD_HEADER_SIZEOF)
        self.host[PCI_STATUS : PCI_STATUS + 2] = bytes((0xFF & ~PCI_STATUS_CAP_LIST, 0xFF))
        self.data[:PCI_STD_HEADER_SIZEOF] = bytes(PCI_STD_HEADER_SIZEOF)
        self._link_capabilities(image)
        self._link_extended(image)

    def _link_capabilities(self, image: bytes) -> None:
        linked: set[int] = set()
        for at, cap_id in capabilities(image):
            end = at + _length(image, at, cap_id)
            if cap_id in OURS:  # it can be one only, of those that are whole
                self.take(at, min(end, PCI_CFG_SPACE_SIZE) - at)
                if cap_id in linked or end > PCI_CFG_SPACE_SIZE:
                    continue
            linked.add(cap_id)
            self.take(at, 2)
            self.data[at : at + 2] = bytes((cap_id, 0))
            self.data[self._link] = at
            self.data[PCI_STATUS] |= PCI_STATUS_CAP_LIST
            self._link = at + 1
            # Behind one whose length nobody knows there is no room for another.
            self._free = max(self._free, (end + 3) & ~3)

    def _link_extended(self, image: bytes) -> None:
        found = list(extended_capabilities(image))
        starts = [*sorted(cap.offset for cap in found), len(image)]
        shown = [cap for cap in found if cap.cap_id not in HIDDEN]
        for cap in found:
            if cap.cap_id in HIDDEN:
                length = next(start for start in starts if start > cap.offset) - cap.offset
                self.take(cap.offset, length)
                self.data[cap.offset : cap.offset + length] = bytes(length)
        if shown and shown[0].offset != PCI_CFG_SPACE_SIZE:
            shown.insert(0, ExtendedCapability(PCI_CFG_SPACE_SIZE, 0, 0))  # the list begins there: a null capability
        after = 0
        for cap in reversed(shown):
            self.take(cap.offset, 4)
            self.set(cap.offset, 4, cap.cap_id | cap.version << 16 | after << 20)
            after = cap.offset

    def take(self, offset: int, size: int) -> None:
        """These bytes are ours."""
        self.host[offset : offset + size] = bytes(size)

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"") -> int:
        offset = super().add_capability(cap_id, body, writable)
        self.take(offset, 2 + len(body))
        return offset

    def put_capability(self, offset: int, body: bytes, writable: bytes = b"") -> int:
        self.take(offset, 2 + len(body))
        return super().put_capability(offset, body, writable)

    def read(self, offset: int, size: int) -> int:
        own = super().read(offset, size)
        mask = int.from_bytes(self.host[offset : offset + size], "little")
        if not mask:
            return own
        theirs = int.from_bytes(self._host_read(offset, min(size, self.size - offset)), "little")
        return own & ~mask | theirs & mask

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        mask = bytes(self.host[offset : offset + size])
        data = value.to_bytes(size, "little")
        if mask.count(0xFF) == size:
            self._host_write(offset, data)
            return
        for i, bits in enumerate(mask):  # of the bits that are ours the device hears zeros: those in STATUS it ignores
            if bits:
                self._host_write(offset + i, bytes((data[i] & bits,)))


def msi_length(flags: int) -> int:
    """Bytes of an MSI capability, by its message control register."""
    return 10 + (4 if flags & PCI_MSI_FLAGS_64BIT else 0) + (10 if flags & PCI_MSI_FLAGS_MASKBIT else 0)


def _length(image: bytes, at: int, cap_id: int) -> int:
    if cap_id == PCI_CAP_ID_MSI:
        return msi_length(int.from_bytes(image[at + 2 : at + 4], "little"))
    if cap_id == PCI_CAP_ID_VNDR:
        return max(image[at + 2], 3)
    return LENGTHS.get(cap_id, PCI_CFG_SPACE_SIZE - at)
