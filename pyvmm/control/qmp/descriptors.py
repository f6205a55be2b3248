"""Descriptors that a client has sent along with a command (SCM_RIGHTS), and those that it has named with `getfd`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from pyvmm.control.qmp.messages import QmpError

MOST_SENT: Final = 4
"""With one piece of what is sent."""
MOST_NAMED: Final = 64


class Descriptors:
    """Of one client; close() when it is gone."""

    def __init__(self) -> None:
        self._sent: list[int] = []
        self._named: dict[str, int] = {}

    def arrived(self, fds: Iterable[int]) -> None:
        """Those that came with a piece; the ones before that no command took are closed, as QEMU does."""
        came = list(fds)
        if came:
            self._drop_sent()
            self._sent = came

    def name(self, name: str) -> None:
        """Keep the first that was sent as *name*, in place of one that had it."""
        if not name or name[0].isdigit():
            raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
        if not self._sent:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        if name not in self._named and len(self._named) >= MOST_NAMED:
            raise QmpError(f"there are {MOST_NAMED} named descriptors, and no more: close one")
        if name in self._named:
            os.close(self._named[name])
        self._named[name] = self._sent.pop(0)

    def take(self, name: str) -> int:
        """The one of this *name*, which is the caller's from now on."""
        if name not in self._named:
            raise QmpError(f"File descriptor named '{name}' has not been found")
        return self._named.pop(name)

    def close(self) -> None:
        self._drop_sent()
        for fd in self._named.values():
            os.close(fd)
        self._named.clear()

    def _drop_sent(self) -> None:
        for fd in self._sent:
            os.close(fd)
        self._sent = []
