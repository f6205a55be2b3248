"""The user's end of a prompt, `pyvmm attach PATH`: a process of its own, so that its terminal is Python's readline's.

On a terminal there are line editing, history (in XDG_STATE_HOME, ~/.local/state) and completion with Tab; Ctrl-C
interrupts what runs, Ctrl-D leaves. Where standard input is no terminal, its lines are statements and prompts are not
shown.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from kvm_cffi import catch_signal
from pyvmm.errors import UserError, printable
from pyvmm.host.repl.wire import (
    BYE,
    COMPLETE,
    COMPLETIONS,
    INTERRUPT,
    LEAVE,
    LINE,
    OUTPUT,
    READY,
    Message,
    MessageReader,
    WireError,
    packed,
)

HISTORY: Final = 1000
"""Lines that are kept."""
LOOK_MS: Final = 50
"""How often Ctrl-C and the machine's end are looked for."""
HEARD: Final = signal.SIGUSR1
"""The signal that takes the user from his line."""
NUDGE: Final = signal.SIGUSR2
"""Lets readline look whether another signal has come, and is nothing itself: a handler in Python could run while the
other's exception is on its way through C."""


class _Heard(Exception):
    """The machine says something while the user types."""


class PromptClient:
    """Of the machine at the other end of *stream*. Raises UserError where that speaks something else.

    A signal raises only while the user types, where nothing can be lost of what the machine says."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._reader = MessageReader()
        self._waiting: list[Message] = []
        self._found: list[str] = []
        self._terminal = sys.stdin.isatty()
        self._typing = False  # no Event: a handler that sets one waits for ever for whom it has interrupted in doing so
        self._typed: str | None = None
        self._interrupted = False

    def run(self) -> int:
        """Until the user or the machine leaves; the exit status."""
        signal.signal(signal.SIGINT, self._signalled)
        signal.signal(HEARD, self._signalled)
        if self._terminal:
            catch_signal(NUDGE)
            signals, of_handlers = os.pipe()
            os.set_blocking(of_handlers, False)
            signal.set_wakeup_fd(of_handlers, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(threading.get_ident(), signals), daemon=True).start()
        with self._editing():
            prompt = self._until_ready()
            while prompt is not None:
                try:
                    line = self._line(prompt)
                except KeyboardInterrupt:
                    self._send(INTERRUPT)
                except _Heard:
                    if self._typed is not None:
                        self._send(LINE, self._typed)
                    elif self._is_readable():
                        print()
                    else:  # it was read meanwhile
                        continue
                else:
                    self._send(LEAVE) if line is None else self._send(LINE, line)
                prompt = self._until_ready()
        return 0

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._typing:
            self._typing = False
            raise KeyboardInterrupt if number == signal.SIGINT else _Heard
        self._interrupted |= number == signal.SIGINT

    def leave(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal that ends this process."""
        self._typing = False
        raise SystemExit(128 + number)  # through readline, which gives the terminal back

    def _listen(self, typist: int, signals: int) -> None:
        """A thread: while the user types, nobody else looks whether the machine has gone; and a signal that comes
        where readline does not look (CPython's Modules/readline.c, readline_until_enter_or_signal) would wait for the
        next key."""
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        poll.register(signals, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            came = os.read(signals, 64) if signals in ready else b""
            time.sleep(LOOK_MS / 1000)
            if self._typing and self._is_readable():
                signal.pthread_kill(typist, HEARD)
            elif self._typing and set(came) - {HEARD}:
                signal.pthread_kill(typist, NUDGE)

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        return bool(poll.poll(0))

    def _line(self, prompt: str) -> str | None:
        """What the user types; None at the end."""
        self._typed = None
        self._typing = True
        try:
            if self._terminal:
                self._typed = input(prompt)
            elif line := sys.stdin.readline():
                self._typed = line.rstrip("\n")
            return self._typed
        except EOFError:
            print()
            return None
        finally:
            self._typing = False

    def _send(self, kind: str, text: str = "") -> None:
        try:
            self._stream.sendall(packed(kind, text))
        except OSError:  # it is gone, which is read next
            pass

    def _until_ready(self) -> str | None:
        """Show what is printed until the next line may come; its prompt, None where there is none. Ctrl-C interrupts
        what runs."""
        while True:
            kind, text = self._next()
            if kind == OUTPUT:
                sys.stdout.write(text)
                sys.stdout.flush()
            elif kind == COMPLETIONS:
                self._found = text.split("\n") if text else []
            elif kind == READY:
                self._interrupted = False  # it came too late
                return text
            elif kind == BYE:
                return None

    def _next(self) -> Message:
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        while not self._waiting:
            if self._interrupted:
                self._interrupted = False
                self._send(INTERRUPT)
            if not poll.poll(LOOK_MS):
                continue
            try:
                data = self._stream.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                return Message(BYE)
            try:
                self._waiting += self._reader.feed(data)
            except WireError:
                raise UserError("what listens there is no prompt of pyvmm") from None
        return self._waiting.pop(0)

    # Editing

    @contextmanager
    def _editing(self) -> Iterator[None]:
        if not self._terminal:
            yield
            return
        import readline

        file = _history_file()
        try:
            readline.read_history_file(file)
        except OSError:  # there is none yet
            pass
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t\n`~!@#$%^&*()-=+[{]}\\|;:'\",<>/?")
        readline.parse_and_bind("tab: complete")
        try:
            yield
        finally:
            readline.set_history_length(HISTORY)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(file)
            except OSError:  # a home that is read-only
                pass

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            if not text.strip():
                return "    "
            self._typing = False
            self._send(COMPLETE, text)
            if self._until_ready() is None:
                self._waiting.append(Message(BYE))
            self._typing = True
        return self._found[state] if state < len(self._found) else None


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "pyvmm" / "prompt_history"


def attach(where: str | int) -> int:
    """A prompt at the socket *where*, a path or a descriptor; the exit status. Raises UserError."""

    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a thread of the machine's, which hears none, may have started us
    if isinstance(where, int):
        stream = socket.socket(fileno=where)
    else:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(where)
        except OSError as error:
            stream.close()
            why = error.strerror or str(error)
            raise UserError(f"attach {printable(where)}: {why}; pyvmm run --prompt PATH makes it") from None
    with stream:
        client = PromptClient(stream)
        signal.signal(signal.SIGTERM, client.leave)
        signal.signal(signal.SIGHUP, client.leave)
        return client.run()
