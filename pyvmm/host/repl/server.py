"""A prompt for whoever connects: at a Unix socket of its owner's (`--prompt PATH`), or for the terminal (Ctrl-A c)."""

from __future__ import annotations

import os
import select
import socket
import threading
from types import TracebackType
from typing import Final, Self

from pyvmm import threads
from pyvmm.backends.accepting import accept
from pyvmm.backends.unix_socket import listen
from pyvmm.errors import UserError
from pyvmm.host.repl.statements import FIRST, Statements
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
from pyvmm.machine.machine import Machine

SEND_TIMEOUT: Final = 10.0
"""Seconds that a user who reads nothing gets."""
GOODBYE: Final = 1.0
"""Seconds that he gets when the machine has ended."""
CLIENTS: Final = 16
GREETING: Final = "machine is the machine; Ctrl-D leaves, and the guest goes on\n"


class PromptSession:
    """One user, on *client*, which it closes; serve() until he leaves or close()."""

    def __init__(self, machine: Machine, client: socket.socket) -> None:
        self._client = client
        self._gate = threading.Lock()
        self._gone = threading.Event()
        self._statements = Statements(machine, self._print, self._show_ready)
        client.settimeout(SEND_TIMEOUT)

    def _send(self, kind: str, text: str = "") -> None:
        with self._gate:
            if self._gone.is_set():  # each more would be waited for as long again
                return
            try:
                self._client.sendall(packed(kind, text))
            except OSError:  # he is gone, or reads nothing
                self._gone.set()

    def _print(self, text: str) -> None:
        self._send(OUTPUT, text)

    def _show_ready(self, prompt: str | None) -> None:
        if prompt is None:
            self._send(BYE)
            self._gone.set()
        else:
            self._send(READY, prompt)

    def serve(self) -> None:
        """In a thread of its own."""
        reader = MessageReader()
        self._print(GREETING)
        self._show_ready(FIRST)
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        try:
            while not self._gone.is_set():
                if not poll.poll(100):
                    continue
                data = self._client.recv(65536)
                if not data:
                    break
                for message in reader.feed(data):
                    self._take(message)
        except (OSError, WireError):
            pass
        finally:
            self._statements.close()
            with self._gate:
                self._client.close()

    def _take(self, message: Message) -> None:
        kind, text = message
        if kind == INTERRUPT:
            self._statements.interrupt()
        elif kind == LEAVE:
            self._show_ready(None)
        elif self._statements.busy:  # he does not wait for READY: it is lost
            pass
        elif kind == LINE:
            self._statements.push(text)
        elif kind == COMPLETE:
            self._statements.complete(text, lambda found: self._send(COMPLETIONS, "\n".join(found)))

    def close(self) -> None:
        """The machine has ended: say so, and let go; of who reads nothing too."""
        try:
            if self._gate.acquire(timeout=GOODBYE):
                try:
                    self._client.settimeout(GOODBYE)
                finally:
                    self._gate.release()
            else:
                self._client.shutdown(socket.SHUT_RDWR)  # what is being sent fails
        except OSError:  # he has gone
            pass
        self._show_ready(None)


class PromptServer:
    """Prompts at the Unix socket *path*, for who has the same user; a context manager. Raises UserError."""

    def __init__(self, machine: Machine, path: str) -> None:
        try:
            self._listener = listen(path)
        except UserError as error:
            raise UserError(f"--prompt: {error}") from None
        self._machine = machine
        self._path = path
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sessions: dict[threading.Thread, PromptSession] = {}
        self._thread = threading.Thread(target=self._main, name="prompts", daemon=True)
        threads.start(self._thread)

    def _main(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._wake not in dict(poll.poll()):
            client = accept(self._listener, self._wake)
            if client is None:
                continue
            self._sessions = {thread: one for thread, one in self._sessions.items() if thread.is_alive()}
            if len(self._sessions) >= CLIENTS:
                client.close()
                continue
            session = PromptSession(self._machine, client)
            thread = threading.Thread(target=session.serve, name="prompt's user", daemon=True)
            self._sessions[thread] = session
            threads.start(thread)

    def close(self) -> None:
        """Send everybody away and remove the socket."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for thread, session in self._sessions.items():
            session.close()
            thread.join()
        self._listener.close()
        os.close(self._wake)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
