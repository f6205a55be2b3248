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


def size_of(text: str) -> int:
    """What *text* says, in bytes: 10G, 512M, 64KiB, 1048576; each unit is 1024 of the next. Raises ValueError."""
    unit = text.upper().removesuffix("IB").removesuffix("B")
    power = "KMGT".find(unit[-1:]) + 1 if unit else 0
    digits = unit[:-1] if power else unit
    if not digits.isascii() or not digits.isdigit():
        raise ValueError(f"{text!r} is no size: write it as 512M or 10G")
    return int(digits) << 10 * power
