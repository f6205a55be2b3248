"""`pyvmm exec SOCKET -- CMD…`: a command in a guest that runs, by its agent, from another terminal."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from pyvmm.agent import AgentError, Conversation
from pyvmm.cli.stdio import complain
from pyvmm.errors import UserError, printable

CHUNK: Final = 64 << 10
GONE: Final = 3
"""The exit status where the machine ended, or reset, before the command did: none of the command's is known."""


def execute(path: str, words: Sequence[str] | None, wait: float) -> int:
    """The exit status of the command *words*. *wait* seconds are for the agent to answer. Raises UserError."""
    if not words:
        raise UserError("exec: name the command behind --, as in pyvmm exec SOCKET -- uname -a")
    try:
        conversation = Conversation(words, None)
    except ValueError as error:
        raise UserError(f"exec: {error}") from None
    with _connect(path, wait) as wire:
        try:
            return _run(wire, conversation, path, wait)
        except AgentError as error:
            complain(f"pyvmm: exec: {error}")
            return GONE
        except BrokenPipeError:  # nobody reads our output any more
            return 128 + signal.SIGPIPE


def _connect(path: str, wait: float) -> socket.socket:
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    seconds, rest = divmod(max(1, int(wait * 1e6)), 1_000_000)  # 0 would be for ever
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, rest))
    try:
        wire.connect(path)
    except FileNotFoundError:
        raise UserError(
            f"exec: {printable(path)} does not exist: start the machine with "
            f"--device virtio-console,port.pyvmm.agent=socket:{printable(path)}"
        ) from None
    except BlockingIOError:
        raise UserError(f"exec: {printable(path)}: others wait there already, each for its turn") from None
    except OSError as error:
        why = "no machine listens there" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
        raise UserError(f"exec: {printable(path)}: {why}") from None
    wire.setblocking(False)
    return wire


def _run(wire: socket.socket, conversation: Conversation, path: str, wait: float) -> int:
    deadline = time.monotonic() + wait
    send = bytearray()
    stdin = True
    while conversation.status is None:
        send += conversation.take()
        # Before the agent has answered nobody is there to take the input, which may be the next command's.
        reading: list[socket.socket | int] = [0] if stdin and conversation.hungry and conversation.answered else []
        left = None if conversation.answered else max(0.0, deadline - time.monotonic())
        readable, writable, _ = select.select([wire, *reading], [wire] if send else [], [], left)
        if not readable and not writable and not conversation.answered and time.monotonic() >= deadline:
            raise UserError(
                f"exec: {printable(path)}: no agent answers: does the guest run it, and does nobody else use the port? "
                "See docs/consoles.md"
            )
        if writable:
            del send[: _sent(wire, send)]
        if wire in readable:
            for number, data in conversation.feed(_received(wire)):
                _write(number, data)
        if 0 in readable:
            data = os.read(0, CHUNK)
            if data:
                conversation.give(data)
            else:
                stdin = False
                conversation.finish()
    return conversation.status


def _sent(wire: socket.socket, data: bytearray) -> int:
    try:
        return wire.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        raise AgentError("the machine has ended") from None


def _received(wire: socket.socket) -> bytes:
    try:
        data = wire.recv(CHUNK)
    except BlockingIOError:
        return b""
    except OSError:
        data = b""
    if not data:
        raise AgentError("the machine has ended, or gone back to a snapshot")
    return data


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody who has it too has made it so
            select.select([], [fd], [])
