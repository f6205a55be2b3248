"""Pages of guest memory, copied and put back in C without the GIL: what a snapshot is made of.

A bitmap is a bytearray of one bit a page of 4 KiB, little-endian, in whole 64-bit words (bitmap()). A store is as large
as the memory that it copies, and takes what was copied into it.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kvm_cffi._call import KvmError
from kvm_cffi._kvm import ffi, lib

PAGE_SIZE = 4096
_PIECE = 16384
"""Pages copied by one call, 64 MiB."""


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


def copy_touched(
    memory: memoryview,
    room: mmap.mmap,
    own: bytearray,
    fd: int | None = None,
    offset: int = 0,
    progress: Callable[[int], None] | None = None,
    zeros: bool = False,
    untouched: bool = False,
) -> int:
    """Copy each page that is not all zero (with *zeros* those too) to *room* and mark it in *own*; how many. Raises
    OSError.

    Pages that nobody has written are not read, which would have the host give them: in a memfd, *fd* from *offset* on,
    holes (lseek(2), SEEK_DATA); in memory of this process alone what /proc/self/pagemap calls neither present nor
    swapped, or of a file. Where the host tells neither, and with *untouched* in such memory, all are read. *progress*
    hears now and then how many pages are done.
    """
    pages, copied = len(memory) // PAGE_SIZE, 0
    pagemap = -1 if fd is not None or untouched else _open_pagemap()
    try:
        for start, end in [(0, pages)] if fd is None else data(fd, offset, pages):
            for first in range(start, end, _PIECE):
                count = min(_PIECE, end - first)
                n = lib.kvm_cffi_copy_touched(
                    ffi.from_buffer(memory), count, ffi.from_buffer(room), _words(own), first, pagemap, zeros
                )
                if n < 0:
                    raise OSError(ffi.errno, os.strerror(ffi.errno))
                copied += int(n)
                if progress is not None:
                    progress(first + count)
    finally:
        if pagemap >= 0:
            os.close(pagemap)
    return copied


def _open_pagemap() -> int:
    try:
        return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, or a kernel without it
        return -1


def data(fd: int, offset: int, pages: int) -> Iterator[tuple[int, int]]:
    """The [first, end) of pages, from *offset* on, that *fd* has; all where its file system does not know."""
    at, end = offset, offset + pages * PAGE_SIZE
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole to the end
                return
            yield (at - offset) // PAGE_SIZE, pages
            return
        if start < end:
            yield (start - offset) // PAGE_SIZE, (min(at, end) - offset + PAGE_SIZE - 1) // PAGE_SIZE


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
