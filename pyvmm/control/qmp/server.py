"""Where QMP's clients connect: a Unix socket, and a thread that serves one client at a time.

with QmpServer(machine, "/run/user/1000/qmp"):
    machine.run()
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from typing import Final

from pyvmm.backends.unix_socket import listen
from pyvmm.control.listening import Listening, say_goodbye
from pyvmm.control.qmp import events
from pyvmm.control.qmp.descriptors import MOST_SENT, Descriptors
from pyvmm.control.qmp.life import REASON, version
from pyvmm.control.qmp.messages import (
    COMMAND_NOT_FOUND,
    Garbage,
    QmpError,
    QmpRequest,
    RequestReader,
    encode,
    error_reply,
)
from pyvmm.control.qmp.table import COMMANDS, NEGOTIATE
from pyvmm.errors import UserError
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.machine import Machine

EVENT_LIMIT: Final = 1024
"""Events that wait for the client; where it takes none, the oldest are lost."""


class QmpServer(Listening):
    """Lets QMP's clients into *machine* at the Unix socket *path*, which only this user may connect to. A context
    manager; raises UserError for what cannot be listened at."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        try:
            super().__init__("qmp", listen(path), path)
        except UserError as error:
            raise UserError(f"--qmp: {error}") from None
        self._events: deque[bytes] | None = None
        """What the client is to be told; None while there is none that has negotiated."""
        self._descriptors = Descriptors()
        self._tap = machine.events.add(self._told)
        self._start()

    def _ended(self) -> None:
        self._tap.remove()
        self._machine.resume(REASON)  # whom it has stopped, nobody can let go on any more

    # Under the machine lock

    def _told(self, event: MachineEvent) -> None:
        waiting = self._events
        if waiting is not None:
            waiting.extend(events.of(event, self._machine.outcome))
            self._wake()

    # The thread

    def _talk_to(self, client: socket.socket) -> None:
        self._descriptors = Descriptors()
        try:
            self._serve(client)
        except OSError:  # the client is gone
            pass
        finally:
            self._events = None
            self._descriptors.close()

    def _serve(self, client: socket.socket) -> None:
        """Until the client is gone, or the server closes."""
        client.sendall(encode({"QMP": {"version": version(), "capabilities": []}}))
        reader = RequestReader()
        poll = select.poll()
        poll.register(client, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while not self._closing:
            ready = dict(poll.poll())
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            if client.fileno() in ready:
                data, fds, _, _ = socket.recv_fds(client, 65536, MOST_SENT, socket.MSG_CMSG_CLOEXEC)
                self._descriptors.arrived(fds)
                if not data:
                    return
                for request in reader.feed(data):
                    if self._closing:  # there may be thousands, whose answers it reads at its leisure
                        break
                    negotiated, answer = self._events is not None, self._answer(request)
                    if negotiated:
                        self._tell(client)  # what came of it comes before its answer, as QEMU has it
                    client.sendall(answer)
                    if isinstance(request, Garbage) and request.last:
                        say_goodbye(client)
                        return
            self._tell(client)
        self._tell(client)
        say_goodbye(client)

    def _tell(self, client: socket.socket) -> None:
        while self._events:
            client.sendall(self._events.popleft())

    def _answer(self, request: QmpRequest | Garbage) -> bytes:
        try:
            if isinstance(request, Garbage):
                raise QmpError(request.why)
            return encode({"return": self._execute(request), **request.tag})
        except QmpError as error:
            return error_reply(error, request.tag)
        except UserError as error:
            return error_reply(QmpError(str(error)), request.tag)

    def _execute(self, request: QmpRequest) -> object:
        name = request.execute
        if self._events is None:
            if name != NEGOTIATE:
                raise QmpError(f"Expecting capabilities negotiation with '{NEGOTIATE}'", COMMAND_NOT_FOUND)
            return self._negotiate(request)
        if name == NEGOTIATE:
            raise QmpError("Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND)
        command = COMMANDS.get(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
        return command.run(self._machine, request.arguments, self._descriptors)

    def _negotiate(self, request: QmpRequest) -> object:
        """There is no capability to choose."""
        wanted = request.arguments.get("enable", [])
        if not isinstance(wanted, list) or len(request.arguments) > ("enable" in request.arguments):
            raise QmpError("Parameter 'enable' is an array, and all that there is")
        if wanted:
            raise QmpError(f"Capability {wanted[0]!s} is not available")
        self._events = deque(maxlen=EVENT_LIMIT)
        return {}
