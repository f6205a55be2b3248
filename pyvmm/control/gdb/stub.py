"""The remote protocol's commands: what a packet asks for, and the answer.

Source: the gdb manual, E.2 Packets, E.3 Stop Reply Packets, E.4 General Query Packets; physical memory as QEMU's
gdbstub has it. Threads are vCPUs, numbered from 1. A packet may hold anything: what is wrong is answered with an error,
what is not known with an empty packet, and nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from kvm_cffi import KvmError
from pyvmm.control.gdb.debugger import Debugger, Stop
from pyvmm.control.gdb.monitor import Monitor
from pyvmm.control.gdb.packets import PACKET_LIMIT
from pyvmm.control.gdb.points import Point, Unsupported
from pyvmm.control.gdb.registers import REGISTERS, CpuRegisters, target_xml
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemoryError

UNKNOWN: Final = b""
OK: Final = b"OK"
ERROR: Final = b"E01"
SUPPORTED: Final = (
    f"PacketSize={PACKET_LIMIT:x};QStartNoAckMode+;qXfer:features:read+;swbreak+;hwbreak+;vContSupported+"
).encode()
CHUNK: Final = PACKET_LIMIT // 2 - 64
"""Bytes that one answer gives: two digits each, or escaped."""
MOST_ACTIONS: Final = 1024
_POINT: Final = re.compile(rb"([0-4]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})(;.*)?", re.DOTALL)


class Stub:
    """One client's. answer() gives None where the machine runs, and the stop reply comes later, or never."""

    def __init__(self, debugger: Debugger, stop: Stop) -> None:
        self._debugger = debugger
        self._monitor = Monitor(debugger)
        self._last = stop
        self._physical = False
        self.no_ack = False
        self.leaving = False
        """The client has said goodbye."""
        self.killing = False
        """And wants the machine to end."""

    def stop_reply(self, stop: Stop) -> bytes:
        """It has stopped there."""
        self._last = stop
        return f"T{stop.signal:02x}thread:{stop.vcpu + 1:x};{stop.detail}".encode()

    def answer(self, packet: bytes) -> bytes | None:
        if self._debugger.running:
            return ERROR  # nothing can be looked at before it stops
        try:
            return self._answer(packet)
        except (ValueError, IndexError, KvmError, UserError, GuestMemoryError):
            return ERROR
        except Unsupported:
            return UNKNOWN

    def _answer(self, packet: bytes) -> bytes | None:
        letter, rest = packet[:1], packet[1:]
        if letter in b"qQv" and letter:
            return self._named(packet)
        command = self._letters.get(letter)
        return UNKNOWN if command is None else command(self, rest)

    # By letter

    def _why(self, _rest: bytes) -> bytes:
        return self.stop_reply(self._last)

    def _read_registers(self, _rest: bytes) -> bytes:
        return self._registers().all().hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        self._registers().set_all(_bytes(rest))
        return OK

    def _read_register(self, rest: bytes) -> bytes:
        return self._registers().get(_register(rest)).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, value = rest.split(b"=")
        self._registers().set(_register(number), _bytes(value))
        return OK

    def _registers(self) -> CpuRegisters:
        return CpuRegisters(self._debugger.cpu_now)

    def _read_memory(self, rest: bytes) -> bytes:
        address, length = _range(rest)
        data = self._debugger.read(address, min(length, CHUNK), self._physical)
        return data.hex().encode() if data or not length else ERROR

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, digits = rest.partition(b":")
        return self._write(where, _bytes(digits))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._write(where, data)

    def _write(self, where: bytes, data: bytes) -> bytes:
        address, length = _range(where)
        if length != len(data):
            return ERROR
        self._debugger.write(address, data, self._physical)
        return OK

    def _set_thread(self, rest: bytes) -> bytes:
        number = _thread(rest[1:])
        if number is not None and rest[:1] == b"g":
            self._debugger.select(number)
        return OK

    def _alive(self, rest: bytes) -> bytes:
        self._debugger.check(_thread(rest))
        return OK

    def _continue(self, rest: bytes) -> None:
        self._go_from(rest)
        self._debugger.go((), everyone=True)

    def _step(self, rest: bytes) -> None:
        self._go_from(rest)
        self._debugger.go((self._debugger.current,), everyone=False)

    def _continue_with_signal(self, rest: bytes) -> None:
        self._continue(rest.partition(b";")[2])

    def _step_with_signal(self, rest: bytes) -> None:
        self._step(rest.partition(b";")[2])

    def _go_from(self, rest: bytes) -> None:
        if rest:
            registers = CpuRegisters(self._debugger.cpu_now)
            registers.set(16, (int(rest, 16) & (1 << 64) - 1).to_bytes(8, "little"))

    def _insert(self, rest: bytes) -> bytes:
        self._debugger.insert(_point(rest))
        return OK

    def _remove(self, rest: bytes) -> bytes:
        self._debugger.remove(_point(rest))
        return OK

    def _detach(self, _rest: bytes) -> bytes:
        self.leaving = True
        return OK

    def _kill(self, _rest: bytes) -> None:
        self.leaving = self.killing = True

    _letters: Final[dict[bytes, Callable[[Stub, bytes], bytes | None]]] = {
        b"?": _why, b"g": _read_registers, b"G": _write_registers, b"p": _read_register, b"P": _write_register,
        b"m": _read_memory, b"M": _write_memory, b"X": _write_binary, b"H": _set_thread, b"T": _alive,
        b"c": _continue, b"C": _continue_with_signal, b"s": _step, b"S": _step_with_signal, b"Z": _insert,
        b"z": _remove, b"D": _detach, b"k": _kill,
    }  # fmt: skip

    # By name

    def _named(self, packet: bytes) -> bytes | None:
        name, _, rest = packet.partition(b":")
        count = self._debugger.count
        if packet.startswith(b"qRcmd,"):
            text = self._monitor.run(_bytes(packet[6:]).decode(errors="replace"))
            return text.encode(errors="replace")[:CHUNK].hex().encode() or OK
        if packet.startswith(b"vCont"):
            return self._resume(packet[5:])
        if packet.startswith(b"qThreadExtraInfo,"):
            number = _thread(packet[17:])
            self._debugger.check(number)
            return self._debugger.describe(number or 0).encode().hex().encode()
        if packet.startswith(b"qXfer:features:read:"):
            return _transfer(packet[20:])
        if packet.startswith(b"vKill"):
            self._kill(b"")
            return OK
        match name:
            case b"qSupported":
                return SUPPORTED
            case b"QStartNoAckMode":
                self.no_ack = True
                return OK
            case b"qfThreadInfo":
                return b"m" + b",".join(b"%x" % number for number in range(1, count + 1))
            case b"qsThreadInfo":
                return b"l"
            case b"qC":
                return b"QC%x" % (self._debugger.current + 1)
            case b"qAttached":
                return b"1"
            case b"qqemu.PhyMemMode":
                return b"1" if self._physical else b"0"
            case b"Qqemu.PhyMemMode":
                self._physical = bool(int(rest, 16))
                return OK
        return UNKNOWN

    def _resume(self, rest: bytes) -> bytes | None:
        """vCont: for each thread the leftmost action that names it counts."""
        if rest == b"?":
            return b"vCont;c;C;s;S"
        actions = rest.split(b";")[1:]
        if not actions or len(actions) > MOST_ACTIONS:
            return ERROR
        chosen: dict[int, bytes] = {}
        for action in actions:
            what, _, thread = action.partition(b":")
            number = _thread(thread) if thread else None
            if what[:1] not in (b"c", b"C", b"s", b"S"):
                return ERROR
            self._debugger.check(number)
            for one in range(self._debugger.count) if number is None else (number,):
                chosen.setdefault(one, what[:1].lower())
        steps = [number for number, what in chosen.items() if what == b"s"]
        if not chosen:
            return ERROR
        others = any(what == b"c" for what in chosen.values())
        self._debugger.go(steps, everyone=others or len(steps) > 1)
        return None


def _register(digits: bytes) -> int:
    number = int(digits, 16)
    if not 0 <= number < len(REGISTERS):
        raise ValueError("no such register")
    return number


def _bytes(digits: bytes) -> bytes:
    return bytes.fromhex(digits.decode("ascii"))


def _range(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH in hexadecimal."""
    address, length = (int(part, 16) for part in text.split(b","))
    if address >> 64 or length < 0 or address < 0:
        raise ValueError("out of range")
    return address, length


def _thread(text: bytes) -> int | None:
    """The vCPU's number; None for all or any. `p1.2` is how a client with several processes says 2."""
    text = text.rpartition(b".")[2] if text[:1] == b"p" else text
    number = int(text, 16)
    return None if number <= 0 else number - 1


def _point(rest: bytes) -> Point:
    found = _POINT.fullmatch(rest)
    if found is None:
        raise ValueError("no breakpoint")
    if found[4] not in (None, b";"):
        raise Unsupported  # conditions and commands, which gdb evaluates itself then
    return Point(int(found[1]), int(found[2], 16), int(found[3], 16))


def _transfer(rest: bytes) -> bytes:
    """target.xml:OFFSET,LENGTH."""
    name, _, where = rest.partition(b":")
    if name != b"target.xml":
        return b"E00"
    offset, length = _range(where)
    text = target_xml().encode()
    piece = text[offset : offset + min(length, CHUNK)]
    return (b"m" if offset + len(piece) < len(text) else b"l") + piece
