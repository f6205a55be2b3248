"""Standard input, output and error: that they are closed, full or broken is no reason for a traceback."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyvmm.errors import UserError
from pyvmm.host.nonblocking import Output

LIMITS: Final = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What no write ends with: something else was refused."""
PATIENCE_MS: Final = 1000
"""How long a reader of standard error may do nothing before the rest is forgotten."""


def open_closed() -> None:
    """Open those that were closed on /dev/null, so that no other file gets their numbers, nor their text."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:  # print() would take standard output instead
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _drop(fd: int) -> None:
    """Let what is in the buffer go to nobody: at exit Python tries again, and fails with a status of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def complain(text: str) -> None:
    """Say it on standard error, if somebody reads there: the exit status tells the rest."""
    try:
        fd = sys.stderr.fileno()
    except (OSError, ValueError):  # somebody who called us has put something else in its place
        print(text, file=sys.stderr)
        return
    errors = Output(fd)
    try:  # print() would wait for a reader that never comes
        errors.write(f"{text}\n".encode(errors="backslashreplace"), PATIENCE_MS)
    except OSError:
        pass
    finally:
        errors.close()


@contextmanager
def printing() -> Iterator[None]:
    """What is printed inside is out at the end; else UserError, or the status of SIGPIPE where the reader has gone."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno in LIMITS:
            raise  # of what was done inside
        _drop(1)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise UserError(f"cannot write to standard output: {error.strerror}") from None


@contextmanager
def complaining() -> Iterator[None]:
    """What was said on standard error inside has got out at the end, or is forgotten."""
    try:
        yield
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _drop(2)
