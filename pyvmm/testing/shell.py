"""A shell at the other end of a terminal: a command, what it printed, how it ended."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol, Self

from pyvmm.testing.patience import PATIENCE


class Terminal(Protocol):
    """Something with a shell at its other end."""

    def expect(self, what: str | re.Pattern[str], timeout: float = ..., /) -> str: ...

    def send(self, text: str, /) -> None: ...


class _Ran(NamedTuple):
    output: str
    """Both outputs, as they came."""
    status: int


class Ran(_Ran):
    """What a command printed, and its exit status: a pair. Where an agent ran it, *stdout* and *stderr* have each
    output alone; they are None where both came by the serial port."""

    stdout: bytes | None
    stderr: bytes | None

    def __new__(cls, output: str, status: int, stdout: bytes | None = None, stderr: bytes | None = None) -> Self:
        made = super().__new__(cls, output, status)
        made.stdout, made.stderr = stdout, stderr
        return made


def run(terminal: Terminal, command: str, timeout: float = PATIENCE) -> Ran:
    """Type *command* to the shell at *terminal*. The quotes keep the echo of it, wrapped or not, from looking like its
    output. TranscriptError where it does not end."""
    terminal.send(f'echo @"<"; {command}; echo @">"$?@\n')
    terminal.expect(re.compile(r"@<\r*\n"), timeout)
    printed = terminal.expect(re.compile(r"@>\d+@\r*\n"), timeout)
    output, _, ended = printed.rpartition("@>")
    return Ran(output.replace("\r", ""), int(ended.split("@")[0]))


def shell(terminal: Terminal, command: str, timeout: float = PATIENCE, status: int | None = 0) -> str:
    """What *command* printed; AssertionError where it ends otherwise than with *status*."""
    ran = run(terminal, command, timeout)
    assert status is None or ran.status == status, f"{command}: status {ran.status}: {ran.output}"
    return ran.output
