"""PCI configuration space: bytes, and for each bit whether the guest may write it or clears it by writing one.

PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 3.0, section 7 (4096 bytes, extended
capabilities from 0x100). Registers are little-endian and may be accessed at any width and alignment.
"""

from __future__ import annotations

from pyvmm.pci.regs import (
    PCI_CAPABILITY_LIST,
    PCI_CFG_SPACE_EXP_SIZE,
    PCI_CFG_SPACE_SIZE,
    PCI_STATUS,
    PCI_STATUS_CAP_LIST,
    PCI_STD_HEADER_SIZEOF,
)


class ConfigSpace:
    """The configuration space of one function: 256 bytes, or 4096 for PCI Express."""

    STATE = ("data",)

    def __init__(self, size: int = PCI_CFG_SPACE_SIZE) -> None:
        if size not in (PCI_CFG_SPACE_SIZE, PCI_CFG_SPACE_EXP_SIZE):
            raise ValueError(f"configuration space is 256 or 4096 bytes, not {size}")
        self.size = size
        self.data = bytearray(size)
        self.writable = bytearray(size)
        self.w1c = bytearray(size)
        self._reset_image = bytearray(size)
        self._free = PCI_STD_HEADER_SIZEOF
        self._link = PCI_CAPABILITY_LIST

    def define(self, offset: int, size: int, value: int, writable: int = 0, w1c: int = 0) -> None:
        """Set a register's value, the bits the guest writes and the bits it clears by writing one."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        self.writable[offset : offset + size] = writable.to_bytes(size, "little")
        self.w1c[offset : offset + size] = w1c.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        """A register's value, for the device itself."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Change a register from the device's side, whatever the guest may write."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """What the guest reads; all ones beyond the end."""
        data = self.data[offset : offset + size]
        return int.from_bytes(data + b"\xff" * (size - len(data)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """What the guest writes: only writable bits change, W1C bits clear where a one is written."""
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            if i < self.size:
                mask = self.writable[i]
                self.data[i] = ((self.data[i] & ~mask) | (byte & mask)) & ~(byte & self.w1c[i])

    def put_capability(self, offset: int, body: bytes, writable: bytes = b"") -> int:
        """Define the body of a capability whose ID and next pointer are at *offset* already; returns *offset*."""
        start, end = offset + 2, offset + 2 + len(body)
        self.data[start:end] = body
        self.writable[start:end] = writable + bytes(len(body) - len(writable))
        return offset

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability and return its offset.

        *body* is what follows the ID and the next pointer; *writable* its write mask, zero where it is shorter.
        """
        offset = self._free
        length = 2 + len(body)
        if offset + length > PCI_CFG_SPACE_SIZE:
            raise ValueError(f"no room in configuration space for a capability of {length} bytes")
        self.data[offset] = cap_id
        self.data[offset + 2 : offset + length] = body
        self.writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.data[self._link] = offset
        self._link = offset + 1
        self._free = (offset + length + 3) & ~3
        self.data[PCI_STATUS] |= PCI_STATUS_CAP_LIST
        return offset

    def capabilities(self) -> dict[int, int]:
        """The ID of each capability by its offset, as the list has them; one that runs in a circle ends there."""
        found: dict[int, int] = {}
        offset = self.data[PCI_CAPABILITY_LIST]
        while offset and offset not in found:
            found[offset] = self.data[offset]
            offset = self.data[(offset + 1) % self.size]
        return found

    def find_capability(self, cap_id: int) -> int:
        """The offset of the first capability *cap_id*, 0 if there is none."""
        offset = self.data[PCI_CAPABILITY_LIST]
        while offset and self.data[offset] != cap_id:
            offset = self.data[offset + 1]
        return offset

    def shape(self) -> list[tuple[int, int, int]]:
        """Of each byte the bits that never change, those that a driver writes, and those that it clears by a one."""
        image = self._reset_image if any(self._reset_image) else self.data  # before it is plugged in
        masks = zip(image, self.writable, self.w1c, strict=True)
        return [(value & ~(writable | w1c), writable, w1c) for value, writable, w1c in masks]

    def freeze(self) -> None:
        """What the registers hold now is what a reset brings back."""
        self._reset_image = bytearray(self.data)

    def freeze_byte(self, offset: int) -> None:
        """As freeze(), for one byte."""
        self._reset_image[offset] = self.data[offset]

    def reset(self) -> None:
        """Back to the values of the last freeze()."""
        self.data[:] = self._reset_image
