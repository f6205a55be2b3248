"""Bytes for a driver of virtio, moved in C to where its ring says (virtio 1.2, sections 2.7 and 2.8).

A frame of 64 KiB goes to forty buffers of a driver's: in Python, which judges each descriptor by itself, that takes ten
times as long as the copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvm_cffi._kvm import ffi, lib


class _Ram:
    """The guest's RAM by guest physical address, as C sees it; mapped as long as this lives."""

    def __init__(self, ram: Sequence[tuple[int, memoryview]]) -> None:
        # Of a slice: the region's own memoryview can then still be released.
        self._keep = [ffi.from_buffer(buffer[:], require_writable=True) for _, buffer in ram]
        self.count = len(self._keep)
        self.pieces = ffi.new("struct kvm_cffi_ram[]", self.count)
        for piece, (gpa, buffer), memory in zip(self.pieces, ram, self._keep, strict=True):
            piece.gpa, piece.size, piece.memory = gpa, len(buffer), memory


class SplitFiller:
    """Fills the buffers of one split ring of *size* entries: its descriptor table, available and used ring, and the
    guest's RAM by guest physical address. It keeps these mapped as long as it lives."""

    def __init__(
        self,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        size: int,
        ram: Sequence[tuple[int, memoryview]],
    ) -> None:
        self._desc = ffi.from_buffer(desc)
        self._avail = ffi.from_buffer("uint16_t[]", avail)
        self._used = ffi.from_buffer(used, require_writable=True)
        self._size = size
        self._ram = _Ram(ram)

    def fill(self, avail_at: int, used_at: int, data: bytes, most: int, count_at: int = -1) -> int:
        """Spread *data* over the chains that are available from index *avail_at* on, *most* of them at most and 1,024,
        and write their used elements from index *used_at* on. With *count_at* their number is stored there in the
        first, in two bytes. Returns that number; 0, and nothing is written, where they are too few, or one is more than
        a single descriptor for the device to write, not in RAM, or breaks the rules: that is for who walks it to say.
        """
        return int(
            lib.kvm_cffi_ring_fill(
                self._desc,
                self._avail,
                self._used,
                self._size,
                avail_at,
                used_at,
                self._ram.pieces,
                self._ram.count,
                data,
                len(data),
                most,
                count_at,
            )
        )


class PackedFiller:
    """Fills the buffers of one packed ring of *size* descriptors, as SplitFiller those of a split one."""

    def __init__(self, desc: memoryview, size: int, ram: Sequence[tuple[int, memoryview]]) -> None:
        self._desc = ffi.from_buffer(desc, require_writable=True)
        self._size = size
        self._ram = _Ram(ram)

    def fill(self, avail_at: int, used_at: int, data: bytes, most: int, count_at: int = -1) -> int:
        """As SplitFiller.fill(). Both are an index of the ring with the wrap counter in bit 15, and the used
        descriptors are whole but for the flags of the first: the driver sees none of them until the caller writes
        these."""
        return int(
            lib.kvm_cffi_packed_fill(
                self._desc,
                self._size,
                avail_at,
                used_at,
                self._ram.pieces,
                self._ram.count,
                data,
                len(data),
                most,
                count_at,
            )
        )
