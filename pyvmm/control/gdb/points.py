"""Breakpoints and watchpoints: which of the ways that a host's KVM has each of them takes.

An instruction is watched for by an INT3 in its place, or an OUT (port_trap.py), by a debug register, or by a look at
RIP after each instruction, which is slow (every one of them is an exit), and works everywhere. Data is watched by a
debug register or not at all: gdb then steps and compares by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from pyvmm.control.gdb.port_trap import OUT
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.vcpu.debugging import DEBUG_REGISTERS, INT3, DebugAbilities, HardwarePoint, PointKind

SOFTWARE, HARDWARE, WRITE, READ, ACCESS = range(5)
"""The packet's numbers: Z0 to Z4."""
MOST: Final = 4096
"""Points that one client may have."""
_KINDS: Final[dict[int, PointKind]] = {SOFTWARE: "execute", HARDWARE: "execute", WRITE: "write", ACCESS: "access"}


@dataclass(frozen=True)
class Point:
    """As gdb asks for it: *type* is SOFTWARE to ACCESS, *address* linear, *length* in bytes."""

    type: int
    address: int
    length: int


class Unsupported(Exception):
    """Not by this host's KVM: gdb has ways of its own."""


class Patch(NamedTuple):
    """What stands in the guest's RAM in place of what."""

    code: bytes
    original: bytes


class Points:
    """All of a client's. *memory* is guest RAM, *physical* where a linear address is in it, None for nowhere;
    *port_trap* says whether OUT may stand at a linear address."""

    def __init__(
        self,
        abilities: DebugAbilities,
        memory: GuestMemory,
        physical: Callable[[int], int | None],
        port_trap: Callable[[int], bool] = lambda linear: False,
    ) -> None:
        self._abilities = abilities
        self._memory = memory
        self._physical = physical
        self._port_trap = port_trap
        self._points: dict[Point, None] = {}
        self._patches: dict[int, Patch] = {}
        """By guest physical address."""
        self._patched: dict[Point, int] = {}
        self.hardware: list[HardwarePoint] = []
        """For DR0 to DR3, in their order."""
        self.stepped: frozenset[int] = frozenset()
        """Linear addresses that are looked for after each instruction."""

    @property
    def patched(self) -> bool:
        """Whether there is an INT3."""
        return any(patch.code == INT3 for patch in self._patches.values())

    def is_patch(self, gpa: int | None, code: bytes = INT3) -> bool:
        return gpa is not None and gpa in self._patches and self._patches[gpa].code == code

    def has(self, address: int | None) -> bool:
        """Whether there is an instruction breakpoint at linear *address*."""
        return any(point.address == address and point.type in (SOFTWARE, HARDWARE) for point in self._points)

    def add(self, point: Point) -> None:
        """ValueError where there is no such address, or no room for more; Unsupported."""
        if point in self._points:
            return
        if len(self._points) >= MOST:
            raise ValueError("too many")
        kind = _KINDS.get(point.type)
        if kind is None:
            raise Unsupported
        if kind != "execute":
            if not self._abilities.write:
                raise Unsupported
            watched = HardwarePoint(kind, point.address, point.length)
            if not watched.possible or len(self._needs_register()) >= DEBUG_REGISTERS:
                raise ValueError("no debug register for it")
        elif point.type == SOFTWARE and self._abilities.int3:
            self._patch(point, INT3)
        elif point.type == SOFTWARE and self._port_trap(point.address) and self._is_free(point.address):
            self._patch(point, OUT)
        elif not self._abilities.execute and not self._abilities.step:
            raise Unsupported
        elif not self._abilities.step and len(self._needs_register()) >= DEBUG_REGISTERS:
            raise ValueError("no debug register for it")
        self._points[point] = None
        self._plan()

    def remove(self, point: Point) -> None:
        """Nothing where there is none."""
        if point not in self._points:
            return
        del self._points[point]
        gpa = self._patched.pop(point, None)
        if gpa is not None and gpa not in self._patched.values():
            self._restore(gpa)
        self._plan()

    def clear(self) -> None:
        for gpa in list(self._patches):
            self._restore(gpa)
        self._points.clear()
        self._patched.clear()
        self._plan()

    def put_again(self) -> None:
        """The machine's RAM is another's: after a reset, which reads the kernel anew, or a restore."""
        for gpa, (code, _) in list(self._patches.items()):
            found = self._read(gpa, len(code))
            if found is None:
                del self._patches[gpa]
            elif found != code:
                self._patches[gpa] = Patch(code, found)
                self._memory.write(gpa, code)

    def hide(self, gpa: int, data: bytes) -> bytes:
        """*data*, read at *gpa*, as it would be without us."""
        if not self._patches:
            return data
        out = bytearray(data)
        for at, patch in self._patches.items():
            for i, byte in enumerate(patch.original, at - gpa):
                if 0 <= i < len(out):
                    out[i] = byte
        return bytes(out)

    def write(self, gpa: int, data: bytes) -> None:
        """Write to RAM, under the patches. Raises GuestMemoryError."""
        self._memory.write(gpa, data)
        for at, (code, original) in self._patches.items():
            if gpa < at + len(code) and at < gpa + len(data):
                under = bytearray(original)
                for i in range(len(code)):
                    if gpa <= at + i < gpa + len(data):
                        under[i] = data[at + i - gpa]
                self._patches[at] = Patch(code, bytes(under))
                self._memory.write(at, code)

    def _needs_register(self) -> list[HardwarePoint]:
        """What has a debug register: data first, for nothing else watches it."""
        data = [HardwarePoint(_KINDS[p.type], p.address, p.length) for p in self._points if p.type in (WRITE, ACCESS)]
        if not self._abilities.execute:
            return data
        code = [p for p in self._points if p.type in (SOFTWARE, HARDWARE) and p not in self._patched]
        addresses = dict.fromkeys(p.address for p in sorted(code, key=lambda p: p.type == SOFTWARE))
        return (data + [HardwarePoint("execute", address) for address in addresses])[:DEBUG_REGISTERS]

    def _plan(self) -> None:
        self.hardware = self._needs_register()
        watched = {point.address for point in self.hardware if point.kind == "execute"}
        code = {p.address for p in self._points if p.type in (SOFTWARE, HARDWARE) and p not in self._patched}
        self.stepped = frozenset(code - watched)

    def _is_free(self, address: int) -> bool:
        """Whether an OUT there would lie over no other patch."""
        gpa = self._physical(address)
        return gpa is None or all(at == gpa or abs(at - gpa) >= len(OUT) for at in self._patches)

    def _patch(self, point: Point, code: bytes) -> None:
        gpa = self._physical(point.address)
        original = None if gpa is None else self._read(gpa, len(code))
        if gpa is None or original is None:
            raise ValueError("no RAM is there")
        if gpa not in self._patches:
            self._patches[gpa] = Patch(code, original)
            self._memory.write(gpa, code)
        self._patched[point] = gpa

    def _restore(self, gpa: int) -> None:
        code, original = self._patches.pop(gpa)
        if self._read(gpa, len(code)) == code:  # else the guest has put something else there
            self._memory.write(gpa, original)

    def _read(self, gpa: int, length: int) -> bytes | None:
        try:
            return self._memory.read(gpa, length)
        except GuestMemoryError:
            return None
