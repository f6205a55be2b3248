"""Where gdb connects: a socket, and a thread that serves one client at a time.

with GdbServer(machine, "127.0.0.1:0") as gdb:
    print("target remote", gdb.address)
    machine.run()
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Final

from pyvmm.backends.unix_socket import listen
from pyvmm.control.gdb.debugger import REASON, Debugger, Stop
from pyvmm.control.gdb.packets import Acknowledgement, Interrupt, Packet, Reader, frame
from pyvmm.control.gdb.stub import Stub
from pyvmm.control.listening import Listening, say_goodbye
from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome

LOCAL: Final = "127.0.0.1"
"""Where only this host's users reach it: who is connected may do everything to the guest."""


class GdbServer(Listening):
    """Lets gdb into *machine* at *where*: [HOST]:PORT (where no host is given this one alone may connect; port 0 is any
    that is free) or the path of a Unix socket. With *wait* the guest executes nothing before gdb lets it go on. A
    context manager; raises UserError for what cannot be listened at."""

    def __init__(self, machine: Machine, where: str, wait: bool = False) -> None:
        self._machine = machine
        super().__init__("gdb", *_listen(where))
        if wait:
            machine.pause(REASON)
        self._start()

    @property
    def address(self) -> str:
        """What gdb's `target remote` takes."""
        if self._path is not None:
            return self._path
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def _ended(self) -> None:
        self._machine.resume(REASON)  # it has waited, and nobody came

    # The thread

    def _talk_to(self, client: socket.socket) -> None:
        if client.family == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            debugger = Debugger(self._machine, self._wake)
        except (UserError, OSError):
            return
        try:
            session = _Session(debugger, client, self._wake_fd, debugger.attach())
            session.serve(lambda: self._closing)
            if session.stub.killing:
                self._machine.end(Outcome(End.QUIT, message="gdb has killed it"))
        except UserError:  # it does not stand still, or has ended
            pass
        finally:
            try:
                debugger.detach()
            except UserError:
                pass


def _listen(where: str) -> tuple[socket.socket, str | None]:
    """A listener, and its path where it has one. Raises UserError."""
    host, colon, port = where.rpartition(":")
    by_port = colon and port.isascii() and port.isdigit() and "/" not in where
    if by_port and (len(port) > 5 or int(port) > 65535):
        raise UserError(f"--gdb {where}: {port} is no port: 0 to 65535")
    try:
        if by_port:
            return socket.create_server((host.strip("[]") or LOCAL, int(port)), backlog=1), None
        return listen(where), where
    except OSError as error:
        raise UserError(
            f"--gdb {where}: {error.strerror or error}; give [HOST]:PORT or the path of a socket to be made"
        ) from None
    except UserError as error:
        raise UserError(f"--gdb: {error}") from None


class _Session:
    """One client, from its first byte to its last."""

    def __init__(self, debugger: Debugger, client: socket.socket, wake_fd: int, stop: Stop) -> None:
        self.stub = Stub(debugger, stop)
        self._debugger = debugger
        self._client = client
        self._wake_fd = wake_fd
        self._reader = Reader()
        self._sent = b""

    def serve(self, closing: Callable[[], bool]) -> None:
        """Until the client or the machine is gone, or *closing*."""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        try:
            while not closing() and not self.stub.leaving:
                ready = dict(poll.poll())
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if self._client.fileno() in ready:
                    data = self._client.recv(65536)
                    if not data:
                        return
                    for event in self._reader.feed(data):
                        self._take(event)
                if self._tell():
                    return
            if self._debugger.machine.outcome is not None:
                self._debugger.running = True  # it may be on its way to ask for that
                self._tell()
            say_goodbye(self._client)
        except OSError:  # the client is gone
            return

    def _tell(self) -> bool:
        """Say where it stopped, if it has; whether the machine has ended, which is its last stop."""
        outcome = self._debugger.machine.outcome
        if outcome is not None and self._debugger.running:
            self._send(b"W%02x" % (outcome.status & 0xFF))
            return True
        stop = self._debugger.take_stop() if outcome is None else None
        if stop is not None:
            self._send(self.stub.stop_reply(stop))
        return False

    def _take(self, event: Packet | Interrupt | Acknowledgement) -> None:
        match event:
            case Packet(data, intact):
                if not self.stub.no_ack:
                    self._client.sendall(b"+" if intact else b"-")
                if not intact:
                    return
                answer = self.stub.answer(data)
                if answer is not None:
                    self._send(answer)
            case Interrupt():
                if self._debugger.running:
                    self._send(self.stub.stop_reply(self._debugger.interrupt()))
            case Acknowledgement(good):
                if not good and not self.stub.no_ack and self._sent:
                    self._client.sendall(self._sent)

    def _send(self, data: bytes) -> None:
        self._sent = frame(data)
        self._client.sendall(self._sent)
