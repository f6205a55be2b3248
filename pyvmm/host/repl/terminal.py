"""Ctrl-A c: the terminal that the guest has is a prompt's for a while.

The prompt's end is a process of its own (client.py), in the terminal's foreground, so that Ctrl-C and a crash of
readline's are its alone; this process is in the background meanwhile. However it ends, the terminal's settings and its
foreground process group are what they were.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pyvmm import threads
from pyvmm.host.repl.server import PromptSession
from pyvmm.host.tty import in_foreground
from pyvmm.machine.machine import Machine

PATIENCE: Final = 2.0
"""Seconds that the process gets to end when the machine has."""


class TerminalPrompt:
    """A prompt on the terminal *fd*, which is the user's now; *done* is called when it is that again, from a thread of
    ours. Raises OSError."""

    def __init__(self, machine: Machine, fd: int, done: Callable[[], None]) -> None:
        self._fd = fd
        self._done = done
        self._settings = termios.tcgetattr(fd)
        self._gate = threading.Lock()
        self._back = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pyvmm", "attach", f"fd:{theirs.fileno()}"],
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        atexit.register(self._give_back)
        with suppress(OSError):  # a terminal that is not our controlling one has no foreground
            os.tcsetpgrp(fd, self._process.pid)  # before the first word, after which it reads
        self._session = PromptSession(machine, ours)
        self._server = threading.Thread(target=self._session.serve, name="prompt's user", daemon=True)
        self._waiter = threading.Thread(target=self._wait, name="prompt's process", daemon=True)
        try:
            threads.start(self._server)
            threads.start(self._waiter)
        except RuntimeError:  # this host has no memory for one
            self._process.kill()
            self._process.wait()
            self._give_back()
            raise

    def _wait(self) -> None:
        self._process.wait()
        self._server.join()
        self._give_back()
        self._done()

    def _give_back(self) -> None:
        """The terminal is ours again, as it was."""
        with self._gate:
            if self._back:
                return
            self._back = True
        atexit.unregister(self._give_back)
        try:
            theirs = os.tcgetpgrp(self._fd) == self._process.pid
        except OSError:  # it has no foreground, or is gone
            theirs = False
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # we are in the background
        try:
            if theirs or in_foreground(self._fd):  # else a shell has it by now
                # First: as soon as it is ours, somebody may make it raw and keep what it was.
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)
            if theirs:
                os.tcsetpgrp(self._fd, os.getpgrp())
        except (OSError, termios.error):  # it is gone
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def close(self) -> None:
        """End it, if it has not ended; once is enough."""
        self._session.close()
        self._process.terminate()
        self._waiter.join(PATIENCE)
        if self._waiter.is_alive():
            self._process.kill()
            self._waiter.join()
