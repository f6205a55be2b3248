"""How compressed files begin, of the kinds that Linux' own build makes."""

from __future__ import annotations

from typing import Final

_MAGICS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x1f\x9e", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x5d\0\0", "lzma"),
    (b"BZh", "bzip2"),
    (b"\x89LZO", "lzop"),
)


def compression(head: bytes) -> str:
    """What compressed a file that begins with *head*, at least six bytes of it; empty if nothing that is known."""
    return next((name for magic, name in _MAGICS if head.startswith(magic)), "")
