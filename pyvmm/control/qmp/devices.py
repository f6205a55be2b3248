"""Commands that plug devices in and out (QEMU, qapi/qdev.json); a driver is what `--device` names, with its keys, or
cpu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pyvmm.control.qmp.command import Command
from pyvmm.control.qmp.messages import DEVICE_NOT_FOUND, QmpError
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import there_are
from pyvmm.machine.cpus import name as cpu_name
from pyvmm.machine.machine import Machine


def _device_add(machine: Machine, arguments: Mapping[str, Any]) -> object:
    settings = {}
    for key, value in arguments.items():
        if key == "driver":
            continue
        if isinstance(value, bool):
            settings[key] = "on" if value else "off"
        elif isinstance(value, (str, int, float)):
            settings[key] = str(value)
        else:
            raise QmpError(f"Invalid parameter type for '{key}', expected: string")
        if "\0" in settings[key]:
            raise QmpError(f"Parameter '{key}' has a NUL, which nothing may have")
    machine.plug(DeviceSpec.of(arguments["driver"], settings))
    return {}


def _device_del(machine: Machine, arguments: Mapping[str, Any]) -> object:
    name = arguments["id"]
    devices = machine.call(lambda: sorted(machine.board.devices))
    cpus = [cpu_name(cpu) for cpu in machine.call(lambda: machine.board.sockets.present)]
    if name not in devices and name not in cpus:
        known = devices if machine.config.max_cpus is None else devices + cpus[1:]
        there = there_are(name, known) if known else "there is none"
        raise QmpError(f"Device '{name}' not found: {there}", DEVICE_NOT_FOUND)
    machine.unplug(name, arguments.get("force", False))
    return {}


COMMANDS: Final[Mapping[str, Command]] = {
    "device_add": Command(_device_add, needs={"driver": str}, takes={"id": str}, free=True),
    "device_del": Command(_device_del, needs={"id": str}, takes={"force": bool}),
}
