"""The commands that ask after a machine's life and change it (QEMU, qapi/run-state.json, misc.json, control.json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pyvmm.control.qmp.command import Command
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome

REASON: Final = "qmp"
"""Of a machine that `stop` has paused."""
QUIT_BY: Final = "by QMP"
"""The message of an outcome that `quit` has brought about."""
_ENDED: Final = {
    End.PANIC: "guest-panicked",
    End.INTERNAL_ERROR: "internal-error",
    End.DEVICE_FAULT: "internal-error",
}


def version() -> dict[str, object]:
    """Ours, where QEMU's would be."""
    from importlib.metadata import version  # slow, and asked for only where a client comes

    major, minor, micro = map(int, re.findall(r"\d+", version("pyvmm-kvm"))[:3])
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "pyvmm"}


def _query_version(machine: Machine, arguments: Mapping[str, Any]) -> object:
    return version()


def _query_status(machine: Machine, arguments: Mapping[str, Any]) -> object:
    state, outcome = machine.state, machine.outcome
    if outcome is not None:
        return {"status": _ENDED.get(outcome.end, "shutdown"), "running": False}
    status = {"built": "prelaunch", "paused": "paused"}.get(state, "running")
    return {"status": status, "running": state == "running"}


def _stop(machine: Machine, arguments: Mapping[str, Any]) -> object:
    machine.pause(REASON)
    return {}


def _cont(machine: Machine, arguments: Mapping[str, Any]) -> object:
    """Whoever else has paused it, a console or gdb, lets it go on by himself."""
    machine.resume(REASON)
    return {}


def _system_reset(machine: Machine, arguments: Mapping[str, Any]) -> object:
    machine.reset()
    return {}


def _system_powerdown(machine: Machine, arguments: Mapping[str, Any]) -> object:
    machine.power_button()
    return {}


def _quit(machine: Machine, arguments: Mapping[str, Any]) -> object:
    machine.end(Outcome(End.QUIT, message=QUIT_BY))
    return {}


COMMANDS: Final[Mapping[str, Command]] = {
    "cont": Command(_cont),
    "query-status": Command(_query_status),
    "query-version": Command(_query_version),
    "quit": Command(_quit),
    "stop": Command(_stop),
    "system_powerdown": Command(_system_powerdown),
    "system_reset": Command(_system_reset),
}
