"""The commands that look at a guest's memory, which is what `drgn --qemu` asks for (QEMU, qapi/machine.json, misc.json,
dump.json): a core file to a path or a descriptor, and lines of the human monitor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyvmm.control.core.write import REASON, write_core_to
from pyvmm.control.qmp.command import Command
from pyvmm.control.qmp.descriptors import Descriptors
from pyvmm.control.qmp.human import answer
from pyvmm.control.qmp.messages import QmpError
from pyvmm.errors import printable
from pyvmm.machine.machine import Machine
from pyvmm.machine.new_file import new_file
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import PAGE_SIZE


def _query_target(machine: Machine, arguments: Mapping[str, Any]) -> object:
    return {"arch": "x86_64"}


def _human_monitor_command(machine: Machine, arguments: Mapping[str, Any]) -> object:
    return answer(machine, arguments["command-line"])


def _getfd(machine: Machine, arguments: Mapping[str, Any], descriptors: Descriptors) -> object:
    descriptors.name(arguments["fdname"])
    return {}


def _closefd(machine: Machine, arguments: Mapping[str, Any], descriptors: Descriptors) -> object:
    os.close(descriptors.take(arguments["fdname"]))
    return {}


def _dump_guest_memory(machine: Machine, arguments: Mapping[str, Any], descriptors: Descriptors) -> object:
    """The machine stands meanwhile. With *paging* what page tables map is there at its linear addresses."""
    if arguments.get("detach"):
        raise QmpError("dumps are written while one waits: leave 'detach' out")
    if arguments.get("format", "elf") != "elf":
        raise QmpError("Parameter 'format' is elf")
    if ("begin" in arguments) != ("length" in arguments):
        raise QmpError("Parameters 'begin' and 'length' come together")
    kind, _, where = arguments["protocol"].partition(":")
    if kind not in ("fd", "file") or not where or "\0" in where:
        raise QmpError("Parameter 'protocol' is fd:NAME or file:PATH")
    regions = None
    if "begin" in arguments:
        regions = part_of(machine.memory, arguments["begin"], arguments["length"])
        if not regions:
            raise QmpError("there is no guest memory in that range")
    try:
        if kind == "file":
            with new_file(where) as fd, machine.paused(REASON):
                write_core_to(fd, machine, regions, arguments["paging"])
        else:
            fd = descriptors.take(where)
            try:
                with machine.paused(REASON):
                    write_core_to(fd, machine, regions, arguments["paging"])
            finally:
                os.close(fd)
    except OSError as error:
        raise QmpError(f"cannot write {printable(where)}: {error.strerror}") from None
    return {}


def part_of(memory: GuestMemory, begin: int, length: int) -> Sequence[Region]:
    """The whole pages of RAM that [begin, begin + length) touches."""
    found = []
    for region in memory.ram:
        start = max((begin - region.gpa) // PAGE_SIZE * PAGE_SIZE, 0)
        end = min(-(-(begin + length - region.gpa) // PAGE_SIZE) * PAGE_SIZE, len(region.buffer))
        if length > 0 and start < end:
            found.append(Region(region.gpa + start, region.buffer[start:end], region.fd, region.fd_offset + start))
    return found


COMMANDS: Final[Mapping[str, Command]] = {
    "closefd": Command(_closefd, needs={"fdname": str}, descriptors=True),
    "dump-guest-memory": Command(
        _dump_guest_memory,
        needs={"paging": bool, "protocol": str},
        takes={"begin": int, "length": int, "detach": bool, "format": str},
        descriptors=True,
    ),
    "getfd": Command(_getfd, needs={"fdname": str}, descriptors=True),
    "human-monitor-command": Command(_human_monitor_command, needs={"command-line": str}, takes={"cpu-index": int}),
    "query-target": Command(_query_target),
}
