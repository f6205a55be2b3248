"""Pages of guest memory, copied and put back in C without the GIL: what a snapshot is made of.

A bitmap is a bytearray of one bit a page of 4 KiB, little-endian, in whole 64-bit words (bitmap()). A store is as large
as the memory that it copies, and takes what was copied into it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

from kvm_cffi._call import KvmError
from kvm_cffi._kvm import ffi, lib

PAGE_SIZE = 4096


def bitmap(size: int) -> bytearray:
    """For memory of *size* bytes, all clear."""
    return bytearray((size // PAGE_SIZE + 63) // 64 * 8)


def store(size: int) -> mmap.mmap:
    """Room for the pages of memory of *size* bytes, none of it taken yet; raises OSError."""
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        room.madvise(mmap.MADV_NOHUGEPAGE)  # a page that is copied must not take 2 MiB
    except OSError:  # a kernel without huge pages
        pass
    return room


def _words(bits: bytearray) -> Any:
    return ffi.from_buffer("uint64_t[]", bits, require_writable=True)


def copy_touched(memory: memoryview, room: mmap.mmap, own: bytearray) -> int:
    """Copy each page that is not all zero to *room* and mark it in *own*; how many. Raises OSError."""
    pages = len(memory) // PAGE_SIZE
    copied = int(lib.kvm_cffi_copy_touched(ffi.from_buffer(memory), pages, ffi.from_buffer(room), _words(own)))
    if copied < 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return copied


def harvest(vm: int, slot: int, dirty: bytearray, scratch: bytearray, size: int) -> None:
    """KVM_GET_DIRTY_LOG of *slot*, of *size* bytes: or what the guest has written into *dirty*, and log anew."""
    if lib.kvm_cffi_harvest(vm, slot, _words(dirty), _words(scratch), size // PAGE_SIZE) < 0:
        raise KvmError(ffi.errno, "KVM_GET_DIRTY_LOG")


def copy_dirty(dirty: bytearray, memory: memoryview, room: mmap.mmap) -> int:
    """Copy the pages of *dirty* to *room*; how many."""
    pages = len(memory) // PAGE_SIZE
    return int(lib.kvm_cffi_copy_dirty(_words(dirty), ffi.from_buffer(memory), pages, ffi.from_buffer(room)))


class Levels:
    """Stores in which a page is looked for, the first that has it first: each with the bitmap of those that it has."""

    def __init__(self, levels: Sequence[tuple[mmap.mmap, bytearray]]) -> None:
        self._keep = [(ffi.from_buffer(room), _words(own)) for room, own in levels]
        self._stores = ffi.new("char *[]", [ffi.cast("char *", room) for room, _ in self._keep])
        self._owns = ffi.new("uint64_t *[]", [ffi.cast("uint64_t *", own) for _, own in self._keep])

    def put_back(self, dirty: bytearray, memory: memoryview) -> int:
        """Put the pages of *dirty*, zero where no store has them, into *memory*, and clear *dirty*; how many."""
        into, pages = ffi.from_buffer(memory, require_writable=True), len(memory) // PAGE_SIZE
        return int(lib.kvm_cffi_put_back(_words(dirty), into, pages, self._stores, self._owns, len(self._keep)))
