"""The user's terminal: raw while the guest has it, and as it was before however we end or stop."""

from __future__ import annotations

import atexit
import errno
import os
import termios
import tty
from collections.abc import Callable


def in_foreground(fd: int) -> bool:
    """Whether the terminal behind *fd* is ours to use now; one that is not our controlling terminal always is."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True


def _uninterrupted(call: Callable[[], None]) -> None:
    """A call that may stop us (SIGTTOU) until we are in the foreground; the SIGCONT interrupts it."""
    while True:
        try:
            return call()
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise


class RawTerminal:
    """The terminal behind *fd*: take() and give_back() any number of times, and given back at exit.

    A process that is started in the background stops here until it is in the foreground, as any that uses a terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.ours = False
        """It is raw, and what is typed there is for us."""
        self._before: list[object] | None = None
        """The settings to give back; None while they are set."""
        try:
            # Stops us in the background, and does nothing else: a shell in the foreground has settings of its own.
            _uninterrupted(lambda: termios.tcflow(fd, termios.TCOON))
        except termios.error:
            pass

    def take(self) -> None:
        """Make it raw if we are in the foreground, else leave it to the shell."""
        self.ours = in_foreground(self._fd)
        if not self.ours:
            return
        try:
            if self._before is None:  # after SIGSTOP the shell may show us our own settings
                self._before = list(termios.tcgetattr(self._fd))
                atexit.register(self.give_back)
            _uninterrupted(lambda: tty.setraw(self._fd, termios.TCSANOW))
        except termios.error:  # it is gone
            pass

    def give_back(self) -> None:
        """Make it what it was; in the background that is the shell's business."""
        before = self._before
        if before is None:
            return
        if in_foreground(self._fd):
            try:
                _uninterrupted(lambda: termios.tcsetattr(self._fd, termios.TCSANOW, before))  # type: ignore[arg-type]
            except termios.error:  # it is gone
                pass
        self.ours, self._before = False, None
        atexit.unregister(self.give_back)


CTRL_A = 0x01


class EscapeParser:
    """Takes the user's Ctrl-A commands out of what is typed: a letter each, whatever it means. Ctrl-A twice is one."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes | str]:
        """What *data* is, in the order of typing: bytes for the guest, and commands as one character in lower case."""
        parts: list[bytes | str] = []
        plain = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte != CTRL_A:
                    if plain:
                        parts.append(bytes(plain))
                        plain.clear()
                    parts.append(chr(byte).lower())
                    continue
            elif byte == CTRL_A:
                self._escaped = True
                continue
            plain.append(byte)
        if plain:
            parts.append(bytes(plain))
        return parts
