"""The other end of the remote protocol, packet by packet; gdb itself is driven by its command line."""

from __future__ import annotations

import socket
import subprocess
from collections import deque
from pathlib import Path
from types import TracebackType

from pyvmm.control.gdb.packets import Packet, Reader, frame
from pyvmm.control.gdb.registers import REGISTERS, number_of

PATIENCE = 120.0
"""Seconds until an answer; the machine may be busy."""


class GdbClient:
    """Connected to *address* as GdbServer.address has it, without acknowledgements; a context manager."""

    def __init__(self, address: str) -> None:
        host, colon, port = address.rpartition(":")
        if colon:
            self.socket = socket.create_connection((host, int(port)), PATIENCE)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
        self._reader = Reader()
        self._packets: deque[Packet] = deque()
        assert self.ask("QStartNoAckMode") == "OK"

    def send(self, command: str | bytes) -> None:
        self.socket.sendall(frame(command.encode() if isinstance(command, str) else command))

    def receive(self) -> str:
        """The next packet. ConnectionError where the server has gone."""
        while not self._packets:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server has closed")
            self._packets += [event for event in self._reader.feed(data) if isinstance(event, Packet)]
        packet = self._packets.popleft()
        assert packet.intact
        return packet.data.decode("latin-1")

    def ask(self, command: str | bytes) -> str:
        self.send(command)
        return self.receive()

    def interrupt(self) -> str:
        """Ctrl-C, and where it stopped."""
        self.socket.sendall(b"\x03")
        return self.receive()

    def register(self, name: str) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(f"p{number_of(name):x}")), "little")

    def set_register(self, name: str, value: int) -> str:
        number = number_of(name)
        return self.ask(f"P{number:x}={value.to_bytes(REGISTERS[number].size, 'little').hex()}")

    def monitor(self, line: str) -> str:
        return bytes.fromhex(self.ask(f"qRcmd,{line.encode().hex()}")).decode()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> GdbClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def gdb(address: str, *commands: str, file: Path | None = None) -> str:
    """What gdb prints for *commands* on the guest at *address*, errors among it."""
    words = ["gdb", "-nx", "-q", "-batch", *((str(file),) if file else ())]
    for command in (f"target remote {address}", *commands):
        words += ["-ex", command]
    ran = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    return ran.stdout
