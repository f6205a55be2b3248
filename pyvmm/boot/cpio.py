"""A cpio archive in the format "newc", as Linux unpacks it into its first file system; device nodes need no root here.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Each entry is a header of 110 characters, the
name with a zero byte, and the data, name and data each padded to four bytes; an entry called TRAILER!!! ends it.
"""

from __future__ import annotations

import posixpath
import stat
from typing import Final, NamedTuple

from pyvmm.boot.error import BootError

MAGIC: Final = b"070701"
TRAILER: Final = b"TRAILER!!!"
PATH_MAX: Final = 4096
"""Bytes of a name, its zero byte included (include/uapi/linux/limits.h)."""
MAX_FILE: Final = 0xFFFFFFFF
"""Bytes of a file: its size is eight hexadecimal digits."""


class Entry(NamedTuple):
    mode: int
    """Type and permissions, as in struct stat."""
    data: bytes = b""
    """A file's contents, or where a symbolic link points."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


class Archive:
    """Files by their absolute paths, all of them root's. A path that is given again is replaced; the folders above it
    come by themselves. Raises BootError for a path or a file that the format has no room for."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(path, Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(path, Entry(stat.S_IFREG | stat.S_IMODE(mode), data))

    def symlink(self, path: str, target: str) -> None:
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode(errors="surrogateescape")))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._add(path, Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def __contains__(self, path: str) -> bool:
        return _name(path) in self._entries

    def _add(self, path: str, entry: Entry) -> None:
        name = _name(path)
        if not name or "\0" in name or len(_bytes(name)) >= PATH_MAX or _bytes(name) == TRAILER:
            raise BootError(f"no path for a file in the guest: {path[:80]!r}")
        if len(entry.data) > MAX_FILE:
            raise BootError(f"{path}: {len(entry.data)} bytes, an initramfs has room for less than 4 GiB")
        above, _, _ = name.rpartition("/")
        if above and not self._is_directory(above):
            self.directory(above)
        if self._is_directory(name) and not stat.S_ISDIR(entry.mode):
            raise BootError(f"{path}: a directory in the guest: name a file in it")
        self._entries[name] = entry

    def _is_directory(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and stat.S_ISDIR(entry.mode)

    def __bytes__(self) -> bytes:
        pieces: list[bytes] = []
        # A folder is replaced in place, so it stays before what is in it: what the kernel has no folder for, it drops.
        for number, (name, entry) in enumerate(self._entries.items(), 1):
            pieces += _packed(number, _bytes(name), entry)
        pieces += _packed(0, TRAILER, Entry(0))
        return b"".join(pieces)


def _name(path: str) -> str:
    return posixpath.normpath(f"/{path}").lstrip("/")


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _packed(number: int, name: bytes, entry: Entry) -> tuple[bytes, ...]:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name) + 1, 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)
