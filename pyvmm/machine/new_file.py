"""A file that takes the place of another only when all of it is written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """A descriptor of a file beside *path*, which becomes *path* when the block ends, or what that links to; where it
    raises, *path* stays as it was. Raises OSError, also for a device or a folder: for who is root, it would be gone."""
    import tempfile  # with all that it can do; reading wants none of it

    path = os.path.realpath(path)
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is there, and no regular file", path)
    fd, name = tempfile.mkstemp(prefix=".pyvmm-", dir=os.path.dirname(path) or ".")
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """All of *data* at *offset*; raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
