"""A network for users without rights: passt, a program of its own, takes the guest's frames apart into sockets of this
host's, and answers DHCP, NDP and DNS. Source: passt(1), https://passt.top

It has the other end of a socket pair and ends when ours is closed, which the kernel does however we end.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from typing import Final, Literal, NamedTuple

from pyvmm.backends.cable import Host
from pyvmm.backends.pcap import Dump
from pyvmm.backends.stream import SOCKET_BUFFER, StreamCable
from pyvmm.errors import UserError, printable
from pyvmm.units import MIB

PASST: Final = "passt"
PATIENCE: Final = 20.0
"""Seconds for its start."""
MAX_UNSENT: Final = 8 * MIB
"""More than the window of a connection: a burst of the guest's loses nothing while passt waits for a processor."""
LOOPBACK: Final = "127.0.0.1"


class Forward(NamedTuple):
    """Who connects to *port* of *address* of this host reaches port *to* of the guest."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    to: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """tcp:2222:22, udp:ADDRESS:5353:53; without an address it is 127.0.0.1. Raises ValueError."""
        protocol, *words = text.split(":")
        if protocol not in ("tcp", "udp") or len(words) not in (2, 3):
            raise ValueError(
                f"{text!r} is no forward: write tcp:2222:22 or udp:ADDRESS:5353:53, with + between several"
            )
        *address, port, to = words
        try:
            socket.inet_pton(socket.AF_INET, address[0] if address else LOOPBACK)
        except OSError:
            raise ValueError(f"{text!r}: {address[0]} is no IPv4 address of this host") from None
        numbers = [int(word) if word.isascii() and word.isdigit() else 0 for word in (port, to)]
        if not all(0 < number < 65536 for number in numbers):
            raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
        return cls("tcp" if protocol == "tcp" else "udp", address[0] if address else LOOPBACK, *numbers)

    def check(self) -> None:
        """Raises ValueError where this host does not let us have it."""
        kind = socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as trial:
            if self.protocol == "tcp":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before do not count
            try:
                trial.bind((self.address, self.port))
            except OSError as error:
                raise ValueError(
                    f"{self.protocol} port {self.port} of {self.address} cannot be had: {error.strerror}"
                ) from None

    @property
    def option(self) -> tuple[str, str]:
        """As passt has it."""
        return f"-{self.protocol[0]}", f"{self.address}/{self.port}:{self.to}"


def parse_forwards(text: str) -> list[Forward]:
    """Raises ValueError."""
    return [Forward.parse(one) for one in text.split("+")]


class UserCable(StreamCable):
    """A passt of our own. Raises UserError, and OSError where there is no descriptor left."""

    most_unsent = MAX_UNSENT

    def __init__(self, host: Host, dump: Dump | None, *, forward: str | None, mtu: int | None) -> None:
        super().__init__("net user", host, dump)
        try:
            forwards = parse_forwards(forward) if forward is not None else []
            for one in forwards:
                one.check()
        except ValueError as error:
            raise UserError(f"{self.name}: forward: {error}") from None
        program = shutil.which(PASST)
        if program is None:
            raise UserError(f"{self.name}: there is no passt on this host: apt-get install passt")
        options = [word for one in forwards for word in one.option]
        options += ["-m", str(mtu)] if mtu is not None else []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # It drops what does not fit there, and waits 2 s then; where it listens itself, it asks for more, too.
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        try:
            with theirs:
                self._start([program, "-q", "-F", str(theirs.fileno()), *options], theirs)
        except BaseException:
            ours.close()
            raise
        self._use(ours)

    def _start(self, command: list[str], theirs: socket.socket) -> None:
        """It goes into the background when it is ready, and what we have started ends; it has a session of its own, so
        that a Ctrl-C in our terminal is not for it."""
        with open(os.memfd_create("passt"), "w+b") as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise
                raise UserError(f"{self.name}: {command[0]}: {error.strerror}") from None
            try:
                status = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise UserError(f"{self.name}: passt does not start within {PATIENCE:g} s") from None
            if status:
                errors.seek(0)
                raise UserError(f"{self.name}: passt does not start: {_reason(errors.read(65536), status)}")

    def _lost(self, why: str) -> None:
        super()._lost("passt has ended")


HINTS: Final = {"External interface not usable": "no interface of this host has a default route"}


def _reason(output: bytes, status: int) -> str:
    """The last that it said, but for its troubles with the system's log."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("Failed to send ")]
    last = lines[-1] if lines else f"exit status {status}"
    return HINTS.get(last) or printable(last)
