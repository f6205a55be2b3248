"""Sizes in bytes."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_SIZE: Final = 4 * KIB
"""Of x86: the least that a page table maps."""


def size_text(size: int) -> str:
    """*size* bytes as -m has it: 2G, 640K."""
    for suffix in ("", "K", "M"):
        if size % 1024 or not size:
            return f"{size}{suffix}"
        size //= 1024
    return f"{size}G"
