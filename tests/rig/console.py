"""A program on a pseudo-terminal or on pipes, driven as a person at a terminal would: wait for a text, type, wait."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from pyvmm.testing.patience import LOOK_S, PATIENCE
from pyvmm.testing.transcript import Transcript


class Console(Transcript):
    """A child process whose output is collected as it comes.

    *on_pty* gives it a pseudo-terminal (rows and columns as *size*) for stdin, stdout and stderr. On pipes stderr goes
    with stdout too, unless *stderr* names a file for it. Bytes that are no UTF-8 read as U+FFFD.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        on_pty: bool = False,
        size: tuple[int, int] = (25, 80),
        stderr: Path | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = [os.fspath(word) for word in command]
        super().__init__(" ".join(self.command))
        self.on_pty = on_pty
        self.cooked: list[object] = []
        """The settings of the pseudo-terminal before the program started."""
        environment = {**os.environ, **(env or {})}
        errors = stderr.open("wb") if stderr else None
        try:
            if on_pty:
                ours, theirs = pty.openpty()
                termios.tcsetwinsize(theirs, size)
                self.cooked = list(termios.tcgetattr(theirs))
                self._process = subprocess.Popen(
                    self.command,
                    stdin=theirs,
                    stdout=theirs,
                    stderr=errors or theirs,
                    env=environment,
                    cwd=cwd,
                    start_new_session=True,
                    preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
                )
                os.close(theirs)
                self._in = self._out = ours
            else:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors or subprocess.STDOUT,
                    env=environment,
                    cwd=cwd,
                    start_new_session=True,
                )
                assert self._process.stdin is not None and self._process.stdout is not None
                self._in = os.dup(self._process.stdin.fileno())
                self._out = os.dup(self._process.stdout.fileno())
                self._process.stdin.close()
                self._process.stdout.close()
        finally:
            if errors:
                errors.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, text: str | bytes) -> None:
        """Type *text*, as it is: a line needs its own newline."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self._in, data) :]

    def close_input(self) -> None:
        """End of file on the program's stdin; on a pseudo-terminal the Ctrl-D that stands for it."""
        if self.on_pty:
            self.send(b"\x04")
        else:
            os.close(self._in)
            self._in = -1

    def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; the exit status, or the negative number of the signal that killed it."""
        patience = self.patience(timeout)
        while True:
            try:
                status = self._process.wait(LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if patience.is_over:
                    raise self.error(f"still running after {timeout:g} s of its own time") from None
        self._reader.join(PATIENCE)  # until the last of the output has come
        return status

    def terminal(self) -> list[object]:
        """The settings of the pseudo-terminal, as termios.tcgetattr() has them."""
        return list(termios.tcgetattr(self._in))

    def close(self) -> None:
        """Kill what is left of it, its children included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        for fd in {self._in, self._out} - {-1}:
            os.close(fd)
        self._in = self._out = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._out, 65536)
            except OSError:  # a pseudo-terminal whose other end has been closed: EIO
                data = b""
            self.feed(data)
            if not data:
                return


Start = Callable[..., Console]
