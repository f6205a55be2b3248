"""Guest RAM as drgn reads it: any address and length, by guest physical or by linear address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from drgn import FaultError

from pyvmm.memory import GuestMemory
from pyvmm.units import PAGE_SIZE
from pyvmm.vcpu.paging import ControlRegisters, walk

ADDRESSES: Final = 1 << 64


def read_physical(memory: GuestMemory, address: int, length: int) -> bytes:
    """*length* bytes at guest physical *address*, from regions that follow upon each other; raises FaultError."""
    found = bytearray()
    while len(found) < length:
        at = address + len(found)
        inside = next((size - (at - gpa) for gpa, size in memory.regions if gpa <= at < gpa + size), 0)
        try:
            found += memory.read(at, min(inside, length - len(found)) or 1)
        except ValueError:  # no RAM, or a machine that is being closed
            raise FaultError("no guest RAM", at) from None
    return bytes(found)


def read_linear(memory: GuestMemory, registers: ControlRegisters, address: int, length: int) -> bytes:
    """The same at linear *address*, by the page tables of *registers*."""
    found = bytearray()
    while len(found) < length:
        at = (address + len(found)) % ADDRESSES
        step = walk(memory.read_int, registers, at)
        if step.physical is None:
            raise FaultError(step.fault, at)
        found += read_physical(memory, step.physical, min(PAGE_SIZE - at % PAGE_SIZE, length - len(found)))
    return bytes(found)


def physical_segment(memory: GuestMemory) -> Callable[[int, int, int, bool], bytes]:
    """What Program.add_memory_segment() takes, for all guest physical addresses."""
    return lambda address, count, _offset, _physical: read_physical(memory, address, count)


def linear_segment(
    memory: GuestMemory, registers: Callable[[], ControlRegisters]
) -> Callable[[int, int, int, bool], bytes]:
    """The same for all linear addresses; *registers* are asked for at each read."""
    return lambda address, count, _offset, _physical: read_linear(memory, registers(), address, count)
