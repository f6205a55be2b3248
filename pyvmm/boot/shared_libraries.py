"""The shared libraries that a program needs, as the dynamic loader that it names finds them: ldd(1), without its shell.

The loader is asked with --list, which glibc's and musl's know; it maps the libraries and does not start the program.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Final

from pyvmm.boot.elf import ELF_MAGIC
from pyvmm.boot.error import BootError

PT_INTERP: Final = 3
_ELF64: Final = b"\2\1"
"""ELFCLASS64 and little-endian, behind the magic."""
_HEADER: Final = struct.Struct("<32x Q 14x H H")
"""e_phoff, e_phentsize and e_phnum of Elf64_Ehdr."""
_SEGMENT: Final = struct.Struct("<I 4x Q 16x Q")
"""p_type, p_offset and p_filesz of Elf64_Phdr."""
LOADER_CACHE: Final = "/etc/ld.so.cache"


def interpreter(data: bytes) -> str:
    """The dynamic loader that a 64-bit ELF program names; empty for a static one, and for what is no program."""
    if data[:4] != ELF_MAGIC or data[4:6] != _ELF64 or len(data) < _HEADER.size:
        return ""
    offset, size, count = _HEADER.unpack_from(data)
    for number in range(count):
        at = offset + number * size
        if size < _SEGMENT.size or at + _SEGMENT.size > len(data):
            return ""
        kind, begin, length = _SEGMENT.unpack_from(data, at)
        if kind == PT_INTERP:
            return data[begin : begin + length].rstrip(b"\0").decode(errors="surrogateescape")
    return ""


def shared_libraries(program: Path, data: bytes) -> list[str]:
    """The paths of the libraries that *program*, whose bytes are *data*, needs, its loader's among them; BootError
    where one is missing here."""
    loader = interpreter(data)
    if not loader:
        return []
    try:
        done = subprocess.run(
            [loader, "--list", os.path.abspath(program)], capture_output=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise BootError(f"{program}: its loader {loader}: {error.strerror}") from None
    found = parse_list(done.stdout.decode(errors="surrogateescape"))
    missing = [name for name, path in found if not path]
    if missing or done.returncode != 0:
        what = ", ".join(missing) or done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise BootError(
            f"{program}: its libraries: {what or 'the loader failed'}: install them, or add a static program"
        )
    return list(dict.fromkeys([loader, *(path for _, path in found)]))


def parse_list(text: str) -> list[tuple[str, str]]:
    """What a loader prints, `NAME => PATH (0x…)` or `PATH (0x…)` a line, as (name, path); without a path, not found.
    The vDSO has none and needs none."""
    found = []
    for line in text.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        where = (path if arrow else name).rpartition(" (")[0]
        if where.startswith("/"):
            found.append((name if arrow else where, where))
        elif arrow and "not found" in path:
            found.append((name, ""))
    return found
