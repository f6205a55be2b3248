"""--device NAME,KEY=VALUE,...: a device that comes with pyvmm, or FILE:CLASS, a PCI device of the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from pyvmm.bus import Device
from pyvmm.errors import UserError
from pyvmm.machine.loading import NOT_INITIALIZED, blaming, is_initialized, load_module
from pyvmm.pci.device import PciDevice

BUILTIN: Final = {
    "pci-testdev": "pyvmm.pci.testdev:PciTestdev",
    "testdev": "pyvmm.devices.pc_testdev:PcTestdev",
}
"""What a name stands for: nothing is imported that is not asked for."""

Services = Mapping[str, Callable[[], object]]
"""What a device that comes with pyvmm is given, where its constructor has a parameter of that name."""


class BoardDevice(Protocol):
    """A device that is no PCI function and has addresses of its own: (first, length, who answers there)."""

    ports: Sequence[tuple[int, int, Device]]
    memory: Sequence[tuple[int, int, Device]]

    def reset(self) -> None: ...


def _value(text: str) -> int | str:
    try:
        return int(text, 0)
    except ValueError:
        return text


def parse_device(option: str) -> tuple[Path | None, str, dict[str, int | str]]:
    """FILE:CLASS,KEY=VALUE,... in its parts, or one of BUILTIN, which has no file; a value that reads as a number is a
    number. Raises UserError."""
    head, *settings = option.split(",")
    file, colon, name = head.rpartition(":")
    if head not in BUILTIN and (not colon or not file or not name.isidentifier()):
        names = ", ".join(BUILTIN)
        raise UserError(
            f"device {option}: write it as FILE.py:CLASS or FILE.py:CLASS,KEY=VALUE, or name one of {names}"
        )
    arguments: dict[str, int | str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"device {option}: {setting!r} is no KEY=VALUE")
        arguments[key] = _value(value)
    return Path(file) if colon else None, name, arguments


def device_port(option: str) -> int | None:
    """The number of the root port that the key `port` names; None for the root bus. Raises UserError."""
    port = parse_device(option)[2].get("port")
    if isinstance(port, str):
        raise UserError(f"device {option}: port={port} is no number of a root port")
    return port


def make_device(option: str, services: Services) -> PciDevice | BoardDevice:
    """The device that *option* names; UserError says what is wrong with it."""
    file, name, arguments = parse_device(option)
    if file is not None:
        return load_device(option)
    arguments.pop("port", None)
    module, _, class_name = BUILTIN[name].partition(":")
    make: Callable[..., PciDevice | BoardDevice] = getattr(importlib.import_module(module), class_name)
    parameters = inspect.signature(make).parameters
    keys = [key for key in parameters if key not in services]
    if wrong := sorted(arguments.keys() - set(keys)):
        there_are = f"it has {', '.join(keys)}" if keys else "it has none"
        raise UserError(f"device {option}: {name} has no key {wrong[0]}: {there_are}")
    try:
        return make(**arguments, **{key: services[key]() for key in parameters if key in services})
    except (TypeError, ValueError) as error:
        raise UserError(f"device {option}: {error}") from None


def load_device(option: str) -> PciDevice:
    """Import the user's file and make the device; UserError says what is wrong with either, and in which line."""
    path, name, arguments = parse_device(option)
    if path is None:
        raise UserError(f"device {option}: {name} comes with pyvmm, it is in no file")
    arguments.pop("port", None)
    with blaming(f"device {option}", path):
        module = load_module(path)
        kind = getattr(module, name, None)
        if kind is None:
            raise UserError(f"{path.name} has no class {name}; {_classes(module)}")
        made = kind(**arguments)
        if not isinstance(made, PciDevice):
            raise UserError(f"{name} is no pyvmm.pci.device.PciDevice; {_classes(module)}")
        if not is_initialized(made):
            raise UserError(f"{path.name}: {name}: {NOT_INITIALIZED}")
    return made


def _classes(module: ModuleType) -> str:
    names = [
        name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, PciDevice) and kind.__module__ == module.__name__
    ]
    return f"there are: {', '.join(names)}" if names else "no class in it is derived from PciDevice"
