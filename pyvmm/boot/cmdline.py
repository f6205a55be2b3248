"""The kernel's command line, as the zero-terminated string that every boot protocol points at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.boot.error import BootError
from pyvmm.boot.lowmem import CMDLINE_GPA, CMDLINE_ROOM

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory


def write_cmdline(memory: GuestMemory, cmdline: str, limit: int = CMDLINE_ROOM - 1) -> int:
    """Store *cmdline* and return its guest physical address; BootError when it is longer than *limit* bytes."""
    try:
        text = cmdline.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BootError("the kernel command line holds characters that are not Unicode: retype it") from None
    if b"\0" in text:
        raise BootError("the kernel command line holds a zero byte: retype it")
    limit = min(limit, CMDLINE_ROOM - 1)
    if len(text) > limit:
        raise BootError(f"the kernel command line has {len(text)} bytes, this kernel takes {limit}: shorten it")
    memory.write(CMDLINE_GPA, text + b"\0")
    return CMDLINE_GPA
