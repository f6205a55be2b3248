"""A shell at the other end of a terminal: a command, what it printed, how it ended."""

from __future__ import annotations

import re
from typing import Protocol

from pyvmm.testing.patience import PATIENCE


class Terminal(Protocol):
    """Something with a shell at its other end."""

    def expect(self, what: str | re.Pattern[str], timeout: float = ..., /) -> str: ...

    def send(self, text: str, /) -> None: ...


def shell(terminal: Terminal, command: str, timeout: float = PATIENCE, status: int | None = 0) -> str:
    """Type *command* to the shell at *terminal*; what it printed. AssertionError where it ends otherwise than *status*.

    The quotes keep the echo of the command from looking like its output.
    """
    terminal.send(f'echo @"<"; {command}; echo @">"$?@\n')
    terminal.expect(re.compile(r"@<\r*\n"), timeout)
    printed = terminal.expect(re.compile(r"@>\d+@\r*\n"), timeout)
    output, _, ended = printed.rpartition("@>")
    assert status is None or int(ended.split("@")[0]) == status, f"{command}: status {ended}: {output}"
    return output.replace("\r", "")
