"""Locks on a disk's file that QEMU knows: whoever writes to it is alone with it; those who only read are not.

QEMU locks single bytes with open file description locks (fcntl(2), F_OFD_SETLK): byte 100 + n says "I do n", byte
200 + n "nobody else may do n"; n is 0 for reading what is consistent, 1 for writing, 3 for resizing. Both are read
locks, so that several may say so; to find out who objects one asks for a write lock without taking it.
Source: QEMU, block/file-posix.c (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE), include/block/block-common.h (BLK_PERM_*).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

PERM_BASE: Final = 100
SHARED_BASE: Final = 200
READ, WRITE, RESIZE = 0, 1, 3

_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, length, pid."""
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Of a file system that has none: QEMU goes on without, too."""


class LockedError(Exception):
    """Somebody else has the file."""


def lock(fd: int, write: bool) -> None:
    """Lock the file of *fd* for reading or for writing too, until *fd* is closed. Raises LockedError."""
    does = (READ, WRITE) if write else (READ,)
    forbids = (WRITE, RESIZE)
    try:
        for byte in [PERM_BASE + n for n in does] + [SHARED_BASE + n for n in forbids]:
            _ofd(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        for byte in [SHARED_BASE + n for n in does] + [PERM_BASE + n for n in forbids]:
            if _ofd(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                raise LockedError
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise LockedError from None
        if error.errno not in _NO_LOCKS:
            raise


def _ofd(fd: int, command: int, kind: int, byte: int) -> int:
    """The type of lock that is there, or would be in the way."""
    answer = fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    found: int = _FLOCK.unpack(answer)[0]
    return found
