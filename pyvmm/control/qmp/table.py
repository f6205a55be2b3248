"""All commands by name: each module of commands has a table COMMANDS, and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pyvmm.control.qmp import devices, life, memory
from pyvmm.control.qmp.command import Command
from pyvmm.machine.machine import Machine


def _query_commands(machine: Machine, arguments: Mapping[str, Any]) -> object:
    return [{"name": name} for name in sorted({*COMMANDS, NEGOTIATE})]


NEGOTIATE: Final = "qmp_capabilities"
"""The command that has to be the first, and cannot be a later one: the server answers it."""

COMMANDS: Final[Mapping[str, Command]] = {
    "query-commands": Command(_query_commands),
    **devices.COMMANDS,
    **life.COMMANDS,
    **memory.COMMANDS,
}
