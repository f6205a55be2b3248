"""A Unix socket to listen at: one that a program left behind makes room, another's does not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Final

from pyvmm.errors import UserError, printable

LONGEST_PATH: Final = 107
"""Bytes (unix(7): sun_path has 108, with a NUL)."""
OWNER_ONLY: Final = stat.S_IRUSR | stat.S_IWUSR
"""Who connects has the guest in his hands."""


def listen(path: str) -> socket.socket:
    """Non-blocking, for who has the same user. Raises UserError."""
    shown = printable(path)
    if not path:
        raise UserError("socket:PATH: name the path behind it")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise UserError(f"socket {shown}: a path of more than {LONGEST_PATH} bytes: choose a shorter one")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _clear(path, shown)
        listener.bind(path)
        os.chmod(path, OWNER_ONLY)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise UserError(f"socket {shown}: {error.strerror}") from None
    except UserError:
        listener.close()
        raise
    return listener


def _clear(path: str, shown: str) -> None:
    """A socket that nobody listens at any more makes room. Raises UserError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UserError(f"socket {shown}: there is a file of that name: choose another, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                os.unlink(path)
                return
        raise UserError(f"socket {shown}: another program listens there: choose another")
