"""A file that takes the place of another only when all of it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def new_file(path: str) -> Iterator[int]:
    """A descriptor of a file beside *path*, which becomes *path* when the block ends; where it raises, *path* stays as
    it was. Raises OSError."""
    import tempfile  # with all that it can do; reading wants none of it

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
