"""Lines of QEMU's human monitor, in the words that programs look for: `xp`, `info mtree -f` and `gpa2hva`.

Source: QEMU monitor/hmp-cmds.c (memory_dump), system/memory.c (mtree_print_flatview), monitor/hmp-cmds-target.c
(hmp_gpa2hva).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from pyvmm.board.host_address import locate
from pyvmm.machine.machine import Machine
from pyvmm.memory import GuestMemory

MOST_ITEMS: Final = 4096
"""That one line may ask for."""
_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
_A_ROW: Final = {1: 8, 2: 8, 4: 4, 8: 2}
_NUMBER: Final = r"(0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,19})"
"""As C spells it: 010 is 8."""
_XP: Final = re.compile(rf"xp\s*(?:/([0-9]{{0,5}})x?([bhwg]?))?\s+{_NUMBER}")
_GPA2HVA: Final = re.compile(rf"gpa2hva\s+{_NUMBER}")
NAME: Final = "ram"


def _number(text: str) -> int:
    """What _NUMBER matches; int() alone refuses a leading zero."""
    return int(text, 8 if text[1:2].isdigit() and text[0] == "0" else 0)


def _xp(machine: Machine, match: re.Match[str]) -> str:
    """/NxS ADDRESS: N items of size S (b, h, w, g: 1, 2, 4, 8 bytes), hexadecimal, from a guest physical address."""
    count = min(int(match[1] or 1), MOST_ITEMS)
    return "".join(_rows(machine.memory, _number(match[3]), count, _SIZES[match[2] or "w"]))


def _rows(memory: GuestMemory, address: int, count: int, size: int) -> list[str]:
    rows: list[str] = []
    for start in range(address, address + count * size, _A_ROW[size] * size):
        items = []
        for at in range(start, min(start + _A_ROW[size] * size, address + count * size), size):
            try:
                items.append(f" {memory.read_int(at, size):#0{2 + 2 * size}x}")
            except ValueError:  # no RAM, or a machine that is being closed
                return [*rows, f"{start:016x}:{''.join(items)} Cannot access memory\r\n"]
        rows.append(f"{start:016x}:{''.join(items)}\r\n")
    return rows


def _mtree(machine: Machine, match: re.Match[str]) -> str:
    """RAM, and nothing else: what is behind other addresses is a part of the machine, and not read from here."""
    lines = [
        f"  {region.gpa:016x}-{region.gpa + len(region.buffer) - 1:016x} (prio 0, ram): {NAME}"
        for region in machine.memory.ram
    ]
    return "\r\n".join(["FlatView #0", ' AS "memory", root: system', " Root memory region: system", *lines, "", ""])


def _gpa2hva(machine: Machine, match: re.Match[str]) -> str:
    address = _number(match[1])
    found = locate(machine.memory, address)
    if found is None:
        return f"No memory is mapped at address {address:#x}\r\n"
    return f"Host virtual address for {address:#x} ({NAME}) is {found.virtual:#x}\r\n"


_LINES: Final[Mapping[re.Pattern[str], Callable[[Machine, re.Match[str]], str]]] = {
    _XP: _xp,
    re.compile(r"info\s+mtree\s+-f"): _mtree,
    _GPA2HVA: _gpa2hva,
}


def answer(machine: Machine, line: str) -> str:
    """What QEMU's monitor would say to *line*; to one that we have not, that it is unknown."""
    for pattern, call in _LINES.items():
        match = pattern.fullmatch(line.strip())
        if match:
            return call(machine, match)
    return f"unknown command: {line.strip()[:60]!r}\r\n"
