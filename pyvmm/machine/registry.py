"""--device FILE:CLASS,KEY=VALUE,...: a PCI device from a Python file of the user's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.pci.device import PciDevice


def _value(text: str) -> int | str:
    try:
        return int(text, 0)
    except ValueError:
        return text


def parse_device(option: str) -> tuple[Path, str, dict[str, int | str]]:
    """FILE:CLASS,KEY=VALUE,... in its parts; a value that reads as a number is one. Raises UserError."""
    head, *settings = option.split(",")
    file, colon, name = head.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise UserError(f"--device {option}: write it as FILE.py:CLASS or FILE.py:CLASS,KEY=VALUE")
    arguments: dict[str, int | str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--device {option}: {setting!r} is no KEY=VALUE")
        arguments[key] = _value(value)
    return Path(file), name, arguments


def device_port(option: str) -> int | None:
    """The number of the root port that the key `port` names; None for the root bus. Raises UserError."""
    port = parse_device(option)[2].get("port")
    if isinstance(port, str):
        raise UserError(f"--device {option}: port={port} is no number of a root port")
    return port


def one_line(error: BaseException) -> str:
    """What the user's own code raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def load_device(option: str) -> PciDevice:
    """Import the file and make the device; UserError says what is wrong with either."""
    path, name, arguments = parse_device(option)
    arguments.pop("port", None)
    spec = importlib.util.spec_from_file_location(f"pyvmm_device_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"--device {option}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        made = getattr(module, name)(**arguments)
    except AttributeError as error:
        raise UserError(f"--device {option}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises is the user's to mend
        raise UserError(f"--device {option}: {one_line(error)}") from None
    if not isinstance(made, PciDevice):
        raise UserError(f"--device {option}: {name} is no pyvmm.pci.device.PciDevice")
    return made
