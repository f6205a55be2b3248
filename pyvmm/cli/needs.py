"""Guests that come to nothing by themselves: what they need, and whether the command line has it."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr

from pyvmm import guests
from pyvmm.config import HostConfig, MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError

Parse = Callable[[list[str]], tuple[MachineConfig, HostConfig]]
"""Reads a command line; raises SystemExit or UserError where it is none."""


def line(guest: guests.Guest, config: MachineConfig, host: HostConfig, parse: Parse) -> str | None:
    """What to tell who runs *guest* without what it needs; None where nothing is missing."""
    wanted = _options(guest, parse)
    if wanted is not None and _devices(wanted[0]) <= _devices(config) and wanted[0].memory_slots <= config.memory_slots:
        typed = not wanted[1].type_after or host.type_after or host.display != "none" or host.keyboard != "auto"
        if typed and wanted[0].triple_fault in ("report", config.triple_fault):
            return None
    return f"guest {guest.name} needs {guest.needs}"


def _options(guest: guests.Guest, parse: Parse) -> tuple[MachineConfig, HostConfig] | None:
    """What it needs, where that is written as options."""
    try:
        with redirect_stderr(io.StringIO()):
            return parse(["run", guest.name, *guest.needs.split()])
    except (SystemExit, UserError):  # of argparse: they are words, or a user's own guest has written no options of ours
        return None


def _devices(config: MachineConfig) -> set[str]:
    """Their names."""
    from pyvmm.machine.slots import specs

    return {spec.name for spec in specs(config) if isinstance(spec, DeviceSpec)}
