"""Memory to give to a guest, mapped so that KVM can use huge pages for it."""

from __future__ import annotations

import os
from functools import partial

from kvm_cffi._kvm import ffi, lib


def map_memory(
    size: int, alignment: int, fd: int | None = None, offset: int = 0, *, private: bool = False
) -> memoryview:
    """*size* bytes (a multiple of the page size) at a multiple of *alignment*, a power of two.

    Anonymous memory; or *fd* from *offset* (a multiple of the page size) on, shared with whoever has it too, or
    *private*: what is written stays in this process, and *fd* need only be readable. The kernel is asked for
    transparent huge pages (MADV_HUGEPAGE), and a child process does not get the memory (MADV_DONTFORK). It is unmapped
    when its last view is gone. Raises OSError.
    """
    pointer = lib.kvm_cffi_map(size, alignment, -1 if fd is None else fd, offset, fd is not None and not private)
    if pointer == ffi.NULL:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return memoryview(ffi.buffer(ffi.gc(pointer, partial(_unmap, size), size), size))


def address_of(buffer: memoryview) -> int:
    """Where *buffer* is in this process."""
    with ffi.from_buffer(buffer) as pointer:
        return int(ffi.cast("uintptr_t", pointer))


def drop_translations(buffer: memoryview) -> None:
    """Make KVM forget where *buffer*, whole pages of the host, is in a guest, until the guest touches it again.

    What is in the pages stays. Raises OSError.
    """
    if lib.kvm_cffi_drop_translations(ffi.from_buffer(buffer), len(buffer)):
        raise OSError(ffi.errno, os.strerror(ffi.errno))


def _unmap(size: int, pointer: object) -> None:
    lib.kvm_cffi_unmap(pointer, size)
