"""A network with one server on it, for a machine that boots from there: DHCP (RFC 2131) and TFTP (RFC 1350) over IPv4,
at the other end of `--net socket:PATH`, where each frame is behind its length."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MAC: Final = bytes.fromhex("525400000001")
SERVER: Final = ipaddress.IPv4Address("192.0.2.1")
CLIENT: Final = ipaddress.IPv4Address("192.0.2.15")
"""Of TEST-NET-1 (RFC 5737)."""
BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
IPV4: Final = 0x0800
ARP: Final = 0x0806
UDP: Final = 17
BOOTPS: Final = 67
BOOTPC: Final = 68
TFTP: Final = 69
TRANSFER: Final = 4069
"""The port that answers a TFTP request."""
BLOCK: Final = 512
COOKIE: Final = bytes.fromhex("63825363")
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
NO_PROXY_DHCP: Final = bytes.fromhex("af03b00101")
"""Option 175, iPXE's own, with no-pxedhcp: it doesn't wait for a second server's offer."""


@dataclass(frozen=True)
class Datagram:
    """UDP from or to the client."""

    mac: bytes
    source: tuple[ipaddress.IPv4Address, int]
    to: tuple[ipaddress.IPv4Address, int]
    data: bytes

    @classmethod
    def of_frame(cls, frame: bytes) -> Self | None:
        """None where it is something else."""
        if len(frame) < 42 or struct.unpack_from(">HB", frame, 12) != (IPV4, 0x45) or frame[23] != UDP:
            return None
        source, to = (ipaddress.IPv4Address(frame[at : at + 4]) for at in (26, 30))
        source_port, port, length = struct.unpack_from(">HHH", frame, 34)
        return cls(frame[6:12], (source, source_port), (to, port), frame[42 : 34 + length])

    def __bytes__(self) -> bytes:
        """The frame, from the server to *mac*; 0 in place of UDP's checksum says that there is none (RFC 768)."""
        head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(self.data), 0, 0, 64, UDP, 0)
        head += self.source[0].packed + self.to[0].packed
        total: int = sum(struct.unpack(">10H", head))
        total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        udp = struct.pack(">HHHH", self.source[1], self.to[1], 8 + len(self.data), 0)
        ethernet = self.mac + MAC + IPV4.to_bytes(2)
        return ethernet + head[:10] + total.to_bytes(2) + head[12:] + udp + self.data


def options(packet: bytes) -> dict[int, bytes]:
    """Those of a DHCP packet, by code (RFC 2132)."""
    found: dict[int, bytes] = {}
    rest = packet[240:]
    while len(rest) > 1 and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        found[rest[0]], rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
    return found


class NetbootServer:
    """Listens at *path* for one machine, which it tells to boot *file*; *files* are what it has, by name."""

    def __init__(self, path: Path, file: str, files: dict[str, bytes]) -> None:
        self._file, self._files = file, files
        self.leased = 0
        """How often the client has taken the address that it was offered."""
        self.sent: list[str] = []
        """The files whose last block the client has acknowledged."""
        self._transfer = ""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._wire: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._wire is not None:
            self._wire.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            self._wire, _ = self._listener.accept()
        except OSError:
            return  # closed before a machine came
        with self._wire.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                for answer in self._answers(stream.read(int.from_bytes(head))):
                    self._wire.sendall(len(answer).to_bytes(4) + answer)

    def _answers(self, frame: bytes) -> list[bytes]:
        if frame[12:14] == ARP.to_bytes(2):
            return self._arp(frame)
        came = Datagram.of_frame(frame)
        if came is None:
            return []
        port = came.to[1]
        if port == BOOTPS and (answer := self._dhcp(came)):
            return [bytes(Datagram(came.mac, (SERVER, BOOTPS), (BROADCAST, BOOTPC), answer))]
        if port == TFTP:
            return [bytes(Datagram(came.mac, (SERVER, TRANSFER), came.source, self._read_request(came)))]
        if port == TRANSFER and (answer := self._acknowledged(came)):
            return [bytes(Datagram(came.mac, (SERVER, TRANSFER), came.source, answer))]
        return []

    @staticmethod
    def _arp(frame: bytes) -> list[bytes]:
        """RFC 826: who has SERVER?"""
        operation, sender, target = frame[20:22], frame[22:32], frame[38:42]
        if operation != b"\0\1" or target != SERVER.packed:
            return []
        return [frame[6:12] + MAC + frame[12:20] + b"\0\2" + MAC + SERVER.packed + sender]

    def _dhcp(self, came: Datagram) -> bytes | None:
        wanted = int.from_bytes(options(came.data).get(53, b""))
        if wanted not in (DISCOVER, REQUEST):
            return None
        self.leased += wanted == REQUEST
        answer = bytearray(came.data[:240])
        answer[0] = 2  # BOOTREPLY
        answer[16:24] = CLIENT.packed + SERVER.packed  # yiaddr, siaddr
        answer[108:236] = self._file.encode().ljust(128, b"\0")
        answer[236:240] = COOKIE
        kind = OFFER if wanted == DISCOVER else ACK
        for code, value in ((53, bytes([kind])), (54, SERVER.packed), (51, b"\0\0\x0e\x10"), (1, b"\xff\xff\xff\0")):
            answer += bytes([code, len(value)]) + value
        return bytes(answer) + NO_PROXY_DHCP + b"\xff"

    def _read_request(self, came: Datagram) -> bytes:
        """The first block, or that there is no such file. Options (RFC 2347) a server may leave alone."""
        name = came.data[2:].split(b"\0")[0].decode(errors="replace").lstrip("/")
        if came.data[:2] != b"\0\1" or name not in self._files:
            return b"\0\5\0\1no such file\0"
        self._transfer = name
        return self._block(1)

    def _block(self, number: int) -> bytes:
        data = self._files[self._transfer]
        return struct.pack(">HH", 3, number) + data[(number - 1) * BLOCK : number * BLOCK]

    def _acknowledged(self, came: Datagram) -> bytes | None:
        """The next block, if there is one."""
        if len(came.data) < 4 or came.data[:2] != b"\0\4" or not self._transfer:
            return None
        number = int.from_bytes(came.data[2:4])
        if number * BLOCK > len(self._files[self._transfer]):
            self.sent.append(self._transfer)
            return None
        return self._block(number + 1)
