"""Blocks of 32-bit registers that a guest may access at any width and offset, across two registers too."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def read_dwords(register: Callable[[int], int], offset: int, size: int) -> int:
    """The *size* bytes, 1 to 4, at *offset*; *register* gives the register at a multiple of 4."""
    first, byte = offset & ~3, offset & 3
    value = register(first) >> 8 * byte
    if byte + size > 4:
        value |= register(first + 4) << 8 * (4 - byte)
    return value & (1 << 8 * size) - 1


def written_dwords(offset: int, size: int, value: int) -> Iterator[tuple[int, int, int]]:
    """Of a write of *size* bytes at *offset*, each register that it reaches: its offset, the value, and a mask of the
    bits that are written; the others of the value are 0."""
    mask = ((1 << 8 * size) - 1) << 8 * (offset & 3)
    value = value << 8 * (offset & 3) & mask
    for register in range(offset & ~3, offset + size, 4):
        yield register, value & 0xFFFFFFFF, mask & 0xFFFFFFFF
        value >>= 32
        mask >>= 32
