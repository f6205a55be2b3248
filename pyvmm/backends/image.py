"""A raw disk image on this host: a file or block device, opened, judged and locked.

Reads and writes go straight from and to the buffers that they are given. With cache "none" they bypass the page cache
(O_DIRECT), which wants addresses, offsets and lengths that are multiples of the host's block; buffers that are not go
through one of ours.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shlex
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Literal, Protocol

from pyvmm.backends.locks import LockedError, lock
from pyvmm.errors import UserError, printable
from pyvmm.units import MIB, size_of, size_text

SECTOR: Final = 512
Cache = Literal["writeback", "none", "unsafe"]
Views = Sequence[memoryview]

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10
_DIRECT_BLOCKS: Final = (512, 1024, 2048, 4096)

_MAGIC: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"QED\0", "qed"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
"""(offset, bytes, the name that qemu-img has for the format)."""


class DiskImage(Protocol):
    """A disk's contents. All may raise OSError, of which a request hears; from any thread."""

    size: int
    """In bytes."""
    block: int
    """Offsets and lengths are multiples of it, in bytes."""

    def read(self, views: Views, offset: int) -> None:
        """Fill *views*, from *offset* bytes on. What lies behind the end, up to a whole sector, is zero."""

    def write(self, views: Views, offset: int) -> None: ...

    def flush(self) -> None:
        """Return when all that was written before is where a loss of power does not reach it."""

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Make it zero; with *unmap* the host's blocks may be given back."""

    def discard(self, offset: int, length: int) -> None:
        """Nobody needs this any more."""

    def close(self) -> None: ...


class FileImage:
    """The file or block device *path*. UserError, in one line, where it cannot be the disk that is asked for."""

    def __init__(
        self,
        path: Path,
        *,
        write: bool,
        cache: Cache = "writeback",
        size: str | None = None,
        raw: bool = False,
        look_only: bool = False,
    ) -> None:
        """*size*: make the file, sparse, where there is none, else it must be of this size. *raw*: whatever it begins
        with. *look_only*: neither make, lock nor change it."""
        self.path = path
        self.name = printable(str(path))
        self._cache = cache
        self._lost: int | None = None
        self._flushes: set[int] = set()
        """The numbers of those that are under way."""
        self._last_flush = 0
        self._ended = threading.Condition()
        """One has, and whoever looks at these has it."""
        self._without: set[int] = set()
        """What fallocate has said it cannot do here."""
        self._asked_size = size
        wanted = None if size is None else self._wanted(size)
        if wanted is not None and write and not look_only:
            self._make(wanted)
        if wanted is not None and write and look_only and not os.path.exists(path):
            self.fd = os.memfd_create("disk", os.MFD_CLOEXEC)  # what would be made
            os.ftruncate(self.fd, wanted)
        else:
            self.fd = self._open(write and not look_only)
        try:
            self._judge(wanted, write, raw)
            if not look_only:
                self._lock(write)
            self.block = self._direct_block() if cache == "none" else SECTOR
        except BaseException:
            os.close(self.fd)
            raise

    def error(self, why: str) -> UserError:
        return UserError(f"disk {self.name}: {why}")

    def _wanted(self, text: str) -> int:
        try:
            size = size_of(text)
        except ValueError as error:
            raise self.error(f"size={printable(str(error))}") from None
        if not size or size % SECTOR or size >= 1 << 63:
            raise self.error(f"size={printable(text)} is no multiple of {SECTOR} bytes that a disk can have")
        return size

    def _make(self, size: int) -> None:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return
        except OSError as error:
            raise self.error(f"it cannot be made: {error.strerror}") from None
        try:
            os.ftruncate(fd, size)
        except OSError as error:
            os.unlink(self.path)
            raise self.error(f"it cannot be made {size_text(size)} large: {error.strerror}") from None
        finally:
            os.close(fd)

    def _open(self, write: bool) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            mode = os.stat(self.path).st_mode
            if stat.S_ISDIR(mode):
                raise self.error("it is a directory: name a file or block device")
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise self.error("it is no file and no block device")
            if stat.S_ISBLK(mode) and write:
                flags |= os.O_EXCL  # fails where this host has mounted it
            try:
                return os.open(self.path, flags | (os.O_DIRECT if self._cache == "none" else 0))
            except OSError as error:
                if error.errno == errno.EINVAL and self._cache == "none":
                    raise self.error("its file system has no O_DIRECT: take another cache than none") from None
                raise
        except (OSError, ValueError) as error:
            raise self.error(self._why(error, write)) from None

    def _why(self, error: OSError | ValueError, write: bool) -> str:
        quoted = shlex.quote(self.name)
        match getattr(error, "errno", None):
            case errno.ENOENT if self._asked_size is not None:
                made = f"truncate -s {printable(self._asked_size)} {quoted}"
                return f"there is no such file, and size= makes none that is only read from: make one with  {made}"
            case errno.ENOENT:
                return f"there is no such file: make one with  truncate -s 10G {quoted}  or add size=10G"
            case errno.EACCES | errno.EPERM if write and os.access(self.path, os.R_OK):
                return "you may read it but not write to it: add readonly or temporary"
            case errno.EACCES | errno.EPERM:
                return "you may not read it"
            case errno.EROFS:
                return "its medium is read-only: add readonly or temporary"
            case errno.EBUSY:
                return "this host uses it itself: unmount it first"
            case errno.EMFILE:
                return "this process has no descriptor left for it: raise ulimit -n"
            case errno.ENXIO | errno.ENOMEDIUM:
                return "there is no medium in it"
            case None:
                return str(error)
        assert isinstance(error, OSError)
        return str(error.strerror)

    def _judge(self, wanted: int | None, write: bool, raw: bool) -> None:
        self.is_block_device = stat.S_ISBLK(os.fstat(self.fd).st_mode)
        self.size = self._measure()
        if not self.size:
            raise self.error("it is empty: give it a size with  truncate -s 10G  first")
        if wanted is not None and self.size != wanted:
            raise self.error(f"it has {size_text(self.size)}, not the {size_text(wanted)} of size=: leave size away")
        kind = None if raw else self._format()
        if kind is not None:
            suffix = ".img" if self.path.suffix == ".raw" else ".raw"
            converted = shlex.quote(printable(str(self.path.with_suffix(suffix))))
            raise self.error(
                f"it is a {kind} image, and only raw ones can be used: qemu-img convert -O raw "
                f"{shlex.quote(self.name)} {converted}; or add format=raw, if the guest has written it"
            )

    def _measure(self) -> int:
        if self.is_block_device:
            return os.lseek(self.fd, 0, os.SEEK_END)
        return os.fstat(self.fd).st_size

    def _format(self) -> str | None:
        fd = os.open(
            f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC
        )  # a few bytes, which O_DIRECT does not give
        try:
            begin = os.pread(fd, SECTOR, 0)
        except OSError as error:
            raise self.error(f"it cannot be read: {error.strerror}") from None
        finally:
            os.close(fd)
        return next((kind for at, magic, kind in _MAGIC if begin[at : at + len(magic)] == magic), None)

    def _lock(self, write: bool) -> None:
        try:
            lock(self.fd, write)
        except LockedError:
            hint = "" if not write else "; or add temporary, if that one only reads it"
            raise self.error(f"another machine has it, and locked it: end that one first{hint}") from None

    def _direct_block(self) -> int:
        """The least that O_DIRECT reads here."""
        with mmap.mmap(-1, _DIRECT_BLOCKS[-1]) as page, memoryview(page) as buffer:
            for block in _DIRECT_BLOCKS:
                with suppress(OSError):
                    os.preadv(self.fd, [buffer[:block]], 0)
                    return block
        raise self.error("it cannot be read with cache=none: take another")

    @property
    def modified(self) -> int:
        """When its contents were last written to, by anybody, in ns; a block device does not tell: 0."""
        return 0 if self.is_block_device else os.fstat(self.fd).st_mtime_ns

    def measure(self) -> None:
        """Take note of the size that the file has now."""
        self.size = self._measure()

    # What a request wants

    def read(self, views: Views, offset: int) -> None:
        wanted = sum(map(len, views))
        try:
            got = os.preadv(self.fd, views, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._read_bounced(views, offset)
            return
        while got < wanted:
            rest = rest_of(views, got)
            more = 0 if offset + got >= self.size else os.preadv(self.fd, rest, offset + got)
            if not more:
                if offset + got < self.size:
                    raise OSError(errno.EIO, "the file has become shorter")
                for view in rest:
                    view[:] = bytes(len(view))
                return
            got += more

    def write(self, views: Views, offset: int) -> None:
        wanted = sum(map(len, views))
        try:
            done = os.pwritev(self.fd, views, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._write_bounced(views, offset)
            return
        while done < wanted:
            more = os.pwritev(self.fd, rest_of(views, done), offset + done)
            if not more:
                raise OSError(errno.EIO, "nothing could be written")
            done += more

    def _read_bounced(self, views: Views, offset: int) -> None:
        """What the kernel does not take as it is: addresses that O_DIRECT does not like, or too many views."""
        with mmap.mmap(-1, max(1, sum(map(len, views)))) as buffer, memoryview(buffer) as whole:
            length = sum(map(len, views))
            got = 0
            while got < length:
                more = 0 if offset + got >= self.size else os.preadv(self.fd, [whole[got:length]], offset + got)
                if not more and offset + got < self.size:
                    raise OSError(errno.EIO, "the file has become shorter")
                if not more:
                    break  # the mapping is zero
                got += more
            at = 0
            for view in views:
                view[:] = whole[at : at + len(view)]
                at += len(view)

    def _write_bounced(self, views: Views, offset: int) -> None:
        length = sum(map(len, views))
        with mmap.mmap(-1, max(1, length)) as buffer, memoryview(buffer) as whole:
            at = 0
            for view in views:
                whole[at : at + len(view)] = view
                at += len(view)
            done = 0
            while done < length:
                more = os.pwritev(self.fd, [whole[done:length]], offset + done)
                if not more:
                    raise OSError(errno.EIO, "nothing could be written")
                done += more

    def flush(self) -> None:
        if self._cache == "unsafe":
            return
        with self._ended:
            self._raise_lost()
            number = self._last_flush = self._last_flush + 1
            self._flushes.add(number)
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._lost = error.errno
            raise
        finally:
            with self._ended:
                self._flushes.discard(number)
                self._ended.notify_all()
        with self._ended:  # of two at once the kernel tells one alone
            last = self._last_flush
            self._ended.wait_for(lambda: not any(other <= last for other in self._flushes))
            self._raise_lost()

    def _raise_lost(self) -> None:
        if self._lost is not None:  # the kernel says it once, and then no more, of pages that it has given up
            raise OSError(self._lost, f"an earlier flush failed: {os.strerror(self._lost)}")

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        if unmap and self._fallocate(FALLOC_FL_PUNCH_HOLE, offset, length):
            return
        if self._fallocate(FALLOC_FL_ZERO_RANGE, offset, length):
            return
        with mmap.mmap(-1, min(length, MIB)) as buffer, memoryview(buffer) as zeros:
            while length > 0:
                piece = min(length, MIB)
                self.write([zeros[:piece]], offset)
                offset, length = offset + piece, length - piece

    def discard(self, offset: int, length: int) -> None:
        self._fallocate(FALLOC_FL_PUNCH_HOLE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """False where this file has no such thing."""
        if mode in self._without:
            return False
        try:
            fallocate(self.fd, mode | FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
                raise
            self._without.add(mode)
            return False
        return True

    def close(self) -> None:
        """Once is enough; the locks go with it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def rest_of(views: Views, done: int) -> list[memoryview]:
    """*views* without their first *done* bytes."""
    rest = []
    for view in views:
        if done < len(view):
            rest.append(view[done:])
        done = max(0, done - len(view))
    return rest


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which Python has only the POSIX part."""
    if _libc().fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
