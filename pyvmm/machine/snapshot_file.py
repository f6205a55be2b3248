"""The file of a snapshot: a header, three sections, and guest RAM at a place from which it can be mapped.

    0     magic, 16 bytes; version; of each part (configuration, state, map, RAM) offset, length and CRC-32; the CRC-32
          of all these: little-endian, without gaps
    104   the configuration and the state, as plain.encode() writes them; the map, a bit a page of RAM
    RAM   from a multiple of 4096 to the end of the file; pages that the map has not are holes, and zero

The CRC-32 of RAM (as in IEEE 802.3) is that of the pages in the map. It is looked at by check() alone: all else at each
start, so that a start does not depend on how much RAM there is.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self

from kvm_cffi import pages
from pyvmm import plain
from pyvmm.board.pages import PAGE, Progress, runs_of
from pyvmm.errors import UserError, printable
from pyvmm.machine.new_file import new_file, write_all
from pyvmm.state import Plain
from pyvmm.units import MIB

MAGIC: Final = b"pyvmm snapshot\r\n"
VERSION: Final = 2
HEADER: Final = struct.Struct("<16sI" + "QQI" * 4)
HEADER_SIZE: Final = HEADER.size + 4
MOST_TEXT: Final = 256 * MIB
"""Bytes of a section: far more than any machine has beside its RAM."""
_PIECE: Final = MIB


class Section(NamedTuple):
    """Where a part of the file is."""

    offset: int
    length: int
    crc: int


class Header(NamedTuple):
    """What the file begins with."""

    config: Section
    state: Section
    map: Section
    ram: Section

    def packed(self) -> bytes:
        fields: bytes = HEADER.pack(MAGIC, VERSION, *self.config, *self.state, *self.map, *self.ram)
        return fields + zlib.crc32(fields).to_bytes(4, "little")


class SnapshotFileError(UserError):
    """A file of a snapshot that cannot be written or read: which, and why."""


def write(
    path: str,
    config: Plain,
    state: Plain,
    ram_size: int,
    runs: Iterable[tuple[int, memoryview]],
    progress: Progress | None = None,
) -> None:
    """A new file in place of *path*, which stays as it was if this fails: SnapshotFileError, or what *progress* raises.

    *runs* are pages of RAM that follow each other, with the offset of the first in bytes, in ascending order.
    """
    try:
        with new_file(path) as fd:
            _write(fd, config, state, ram_size, list(runs), progress)
    except OSError as error:
        raise SnapshotFileError(f"cannot write {printable(path)}: {error.strerror}") from None


def _write(
    fd: int, config: Plain, state: Plain, ram_size: int, runs: list[tuple[int, memoryview]], progress: Progress | None
) -> None:
    own = pages.bitmap(ram_size)
    for offset, data in runs:
        _mark(own, offset // PAGE, len(data) // PAGE)
    parts, at = [], HEADER_SIZE
    for text in (plain.encode(config), plain.encode(state), bytes(own)):
        parts.append(Section(at, len(text), zlib.crc32(text)))
        write_all(fd, memoryview(text), at)
        at += len(text)
    start = -(-at // PAGE) * PAGE
    os.ftruncate(fd, start + ram_size)
    crc = done = 0
    total = sum(len(data) for _, data in runs)
    for offset, data in runs:
        for first in range(0, len(data), _PIECE):
            piece = data[first : first + _PIECE]
            crc = zlib.crc32(piece, crc)
            write_all(fd, piece, start + offset + first)
            done += len(piece)
            if progress is not None:
                progress(done, total)
    config_part, state_part, map_part = parts
    write_all(fd, memoryview(Header(config_part, state_part, map_part, Section(start, ram_size, crc)).packed()), 0)


def _mark(own: bytearray, first: int, count: int) -> None:
    while count and first % 8:
        own[first // 8] |= 1 << first % 8
        first, count = first + 1, count - 1
    whole = count // 8
    own[first // 8 : first // 8 + whole] = b"\xff" * whole
    for number in range(first + 8 * whole, first + count):
        own[number // 8] |= 1 << number % 8


class SnapshotFile:
    """A file that write() has made, open for reading; a context manager. Raises SnapshotFileError.

    Header, configuration, state and map are whole and what was written. RAM has its length; check() looks at the rest.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise SnapshotFileError(f"cannot read {printable(path)}: {_why(error)}") from None
        try:
            self._read()
        except OSError as error:
            self.close()
            raise SnapshotFileError(f"cannot read {printable(path)}: {_why(error)}") from None
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise self.error("it is no regular file")
        size = os.fstat(self.fd).st_size
        begin = os.pread(self.fd, HEADER_SIZE, 0)
        if begin[: len(MAGIC)] != MAGIC:
            raise self.error("it is no snapshot of pyvmm")
        if len(begin) < HEADER_SIZE:
            raise self.error("it is truncated")
        _, version, *fields = HEADER.unpack_from(begin)
        if version != VERSION:
            raise self.error(f"it is of version {version}, and this pyvmm reads version {VERSION}")
        if zlib.crc32(begin[:-4]) != int.from_bytes(begin[-4:], "little"):
            raise self.error("its header is damaged")
        header = Header(*(Section(*fields[n : n + 3]) for n in range(0, 12, 3)))
        ram = header.ram
        if ram.offset % PAGE or ram.length % PAGE or not ram.length:
            raise self.error("its header is damaged")
        if size != ram.offset + ram.length:
            raise self.error(f"it is truncated: {size} bytes of {ram.offset + ram.length}")
        self.ram = ram
        own = bytearray(self._section(header.map, "map of RAM"))
        if len(own) != len(pages.bitmap(ram.length)):
            raise self.error("its map of RAM is damaged")
        self.own = own
        """A bit a page of RAM: those that are not holes."""
        self.config = self._plain(header.config, "configuration")
        self.state = self._plain(header.state, "state")

    def _section(self, part: Section, what: str) -> bytes:
        if part.length > MOST_TEXT or part.offset + part.length > self.ram.offset:
            raise self.error(f"its {what} is damaged")
        data = os.pread(self.fd, part.length, part.offset)
        if len(data) != part.length or zlib.crc32(data) != part.crc:
            raise self.error(f"its {what} is damaged")
        return data

    def _plain(self, part: Section, what: str) -> Plain:
        try:
            return plain.decode(self._section(part, what))
        except plain.PlainError as error:
            raise self.error(f"its {what} is damaged: {error}") from None

    def error(self, why: str) -> SnapshotFileError:
        return SnapshotFileError(f"{printable(self.path)}: {why}")

    def runs(self) -> Iterator[tuple[int, int]]:
        """Of the pages that are not holes: offset in RAM and length, both in bytes."""
        for first, count in runs_of(self.own):
            length = min(count * PAGE, self.ram.length - first * PAGE)
            if length > 0:
                yield first * PAGE, length

    def read_into(self, memory: memoryview, offset: int) -> None:
        """Put the pages of RAM from *offset* on into *memory*, which is zero."""
        for start, length in self.runs():
            first, end = max(start, offset), min(start + length, offset + len(memory))
            while first < end:
                got = os.preadv(self.fd, [memory[first - offset : end - offset]], self.ram.offset + first)
                if not got:
                    raise self.error("it is truncated")
                first += got

    def check(self, progress: Progress | None = None) -> None:
        """All of RAM. Raises SnapshotFileError."""
        runs = list(self.runs())
        total, done, crc, zeros = sum(length for _, length in runs), 0, 0, bytes(PAGE)
        for start, length in runs:
            for first in range(start, start + length, _PIECE):
                piece = os.pread(self.fd, min(_PIECE, start + length - first), self.ram.offset + first)
                crc = zlib.crc32(piece, crc)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        if crc != self.ram.crc:
            raise self.error("its RAM is damaged")
        for first, end in pages.data(self.fd, self.ram.offset, self.ram.length // PAGE):
            for number in range(first, end):
                if self.own[number // 8] >> number % 8 & 1:
                    continue
                if os.pread(self.fd, PAGE, self.ram.offset + number * PAGE) != zeros:
                    raise self.error("its RAM is damaged: there is something in a page that was zero")

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
