"""Command lines, as the zero-terminated strings that every boot protocol points at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import CMDLINE_GPA, CMDLINE_ROOM

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory


def write_cmdline(memory: GuestMemory, cmdline: str, limit: int = CMDLINE_ROOM - 1) -> int:
    """Store the kernel's *cmdline* and return its guest physical address; BootError when it is longer than *limit*
    bytes."""
    return write_cmdlines(memory, cmdline, (), limit)[0]


def write_cmdlines(
    memory: GuestMemory, cmdline: str, modules: Iterable[str], limit: int = CMDLINE_ROOM - 1
) -> list[int]:
    """Store the kernel's *cmdline* and those of its *modules* behind it; returns the address of each, the kernel's
    first. Raises BootError where they are too long."""
    kernel = _encode(cmdline, "the kernel command line")
    limit = min(limit, CMDLINE_ROOM - 1)
    if len(kernel) > limit:
        raise BootError(f"the kernel command line has {len(kernel)} bytes, this kernel takes {limit}: shorten it")
    texts = [kernel, *(_encode(text, "the command line of a module") for text in modules)]
    size = sum(len(text) + 1 for text in texts)
    if size > CMDLINE_ROOM:
        raise BootError(
            f"the command lines of the kernel and its modules have {size} bytes, there is room for {CMDLINE_ROOM}: "
            "shorten them"
        )
    addresses = []
    gpa = CMDLINE_GPA
    for text in texts:
        memory.write(gpa, text + b"\0")
        addresses.append(gpa)
        gpa += len(text) + 1
    return addresses


def _encode(text: str, what: str) -> bytes:
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BootError(f"{what} holds characters that are not Unicode: retype it") from None
    if b"\0" in encoded:
        raise BootError(f"{what} holds a zero byte: retype it")
    return encoded
