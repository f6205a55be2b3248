"""What is behind an open file: VFIO's and vhost's objects."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self


class Descriptor:
    """An open file that closes itself; a context manager."""

    fd = -1
    """Until it is open, and once it is closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Once is enough."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
