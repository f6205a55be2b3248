"""A file to boot from: read in small pieces while it is looked at, then loaded straight into guest RAM, copied once."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Final

from pyvmm.boot.error import BootError

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

Source = bytes | str | os.PathLike[str]
"""A path, or the file's bytes."""

PIPE_LIMIT: Final = 1 << 30
"""Bytes that are read from a pipe before it is refused; a regular file has no limit but guest RAM."""


class PipeContents(bytes):
    """What a pipe has given, which it does once."""

    path: str


def kept(source: Source, what: str = "kernel") -> Source:
    """*source*, fit to be read more than once: what a pipe gives is kept. Raises BootError."""
    if isinstance(source, bytes):
        return source
    try:
        if not stat.S_ISFIFO(os.stat(source).st_mode):
            return source
    except (OSError, ValueError):
        return source  # Image says what is wrong with it
    with Image(source, what) as image:
        contents = PipeContents(image.read(0, image.size))
    contents.path = os.fspath(source)
    return contents


class Image:
    """A kernel or an initrd. *what* names its part in messages. Raises BootError when it cannot be read or is empty."""

    def __init__(self, source: Source, what: str = "kernel") -> None:
        self._data = b""
        self._fd = -1
        if isinstance(source, bytes):
            self.path = self.name = what
            if isinstance(source, PipeContents):
                self.path, self.name = source.path, f"{what} {source.path}"
            self._data = source
            self.size = len(source)
        else:
            self.path = path = os.fspath(source)
            self.name = f"{what} {path}"
            try:
                self.size = self._open(path)
            except (OSError, ValueError) as error:
                self.close()
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise BootError(f"{self.name}: {reason}") from None
            except BootError:
                self.close()
                raise
        if self.size == 0:
            self.close()
            raise BootError(f"{self.name}: the file is empty")

    def _open(self, path: str) -> int:
        self._fd = os.open(path, os.O_RDONLY)
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISDIR(mode):
            raise BootError(f"{self.name}: is a directory, not a file")
        if stat.S_ISFIFO(mode):
            with open(self._fd, "rb", closefd=False) as pipe:
                self._data = pipe.read(PIPE_LIMIT + 1)
            self.close()
            if len(self._data) > PIPE_LIMIT:
                raise BootError(f"{self.name}: a pipe that gives more than {PIPE_LIMIT >> 20} MiB: name a file instead")
            return len(self._data)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BootError(f"{self.name}: neither a file nor a pipe")
        return os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; once is enough, more does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset+length), fewer where the file ends before."""
        length = min(length, self.size - offset)
        if length <= 0:  # and an offset that a damaged file gives may be more than pread() takes
            return b""
        if self._fd < 0:
            return self._data[offset : offset + length]
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise BootError(f"{self.name}: {error.strerror}") from None

    def load(self, memory: GuestMemory, gpa: int, offset: int, length: int) -> None:
        """Copy [offset, offset+length) of the file to *gpa*; GuestMemoryError where that is not all RAM."""
        view = memory.view(gpa, length)
        if offset + length > self.size:
            raise BootError(f"{self.name}: ends at {self.size:#x}, before {offset + length:#x}: the file is truncated")
        if self._fd < 0:
            view[:] = memoryview(self._data)[offset : offset + length]
            return
        done = 0
        while done < length:
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise BootError(f"{self.name}: {error.strerror}") from None
            if count == 0:
                raise BootError(f"{self.name}: became shorter while it was being loaded")
            done += count
