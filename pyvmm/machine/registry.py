"""--device NAME,KEY=VALUE,...: a device that comes with pyvmm, or FILE:CLASS, a PCI device of the user's own."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from pyvmm.bus import Device
from pyvmm.errors import UserError, is_ctrl_c, one_line, printable
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
        if not _is_initialized(made):
            raise UserError(f"{path.name}: {name}: {NOT_INITIALIZED}")
    return made


def load_module(path: Path) -> ModuleType:
    """The module in *path*, one a file; as in a script, what lies in its folder can be imported, and gets this module
    where it imports it by its name."""
    if not path.is_file():
        raise UserError(f"{path} is no Python file")
    path = path.resolve()
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get("__file__") == str(path):
            return module
    _let_import_from(path.parent)
    name = path.stem if _means(path.stem, path) else f"pyvmm_device:{path}"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _let_import_from(folder: Path) -> None:
    """Before what is installed, but behind the standard library, of which pyvmm imports parts later."""
    if str(folder) not in sys.path:
        installed = (i for i, entry in enumerate(sys.path) if Path(entry).name in ("site-packages", "dist-packages"))
        sys.path.insert(next(installed, len(sys.path)), str(folder))
    importlib.invalidate_caches()


def _means(name: str, path: Path) -> bool:
    """Whether `import` of *name* would give the file *path*."""
    try:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module that has no spec, such as __main__
        return False
    return found is not None and found.origin == str(path)


def _classes(module: ModuleType) -> str:
    names = [
        name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, PciDevice) and kind.__module__ == module.__name__
    ]
    return f"there are: {', '.join(names)}" if names else "no class in it is derived from PciDevice"


NOT_INITIALIZED: Final = "super().__init__() was not called?"


def _is_initialized(device: object) -> bool:
    from pyvmm.virtio.device import VirtioDevice

    if isinstance(device, VirtioDevice):
        return "queues" in vars(device)
    return not isinstance(device, PciDevice) or "intx_level" in vars(device)


@contextmanager
def blaming(what: str, file: Path) -> Iterator[None]:
    """What the user's own code in *file* raises is a UserError that begins with *what* and ends with the place."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if is_ctrl_c(error) or (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            raise  # the latter is no fault of the file's: the machine says what to do
        place = _place(error, file)
        if isinstance(error, SyntaxError):
            error = type(error)(error.msg)  # its text has a place too
        elif isinstance(error, AttributeError) and not _is_initialized(error.obj):
            error = AttributeError(f"{error}: {NOT_INITIALIZED}")
        raise UserError(f"{what}: {printable(one_line(error))}{place}") from None


def _place(error: BaseException, file: Path) -> str:
    """FILE:LINE, in brackets, of the innermost call in *file* or another one of its folder."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    folder = str(file.resolve().parent)
    lines = [(Path(f.f_code.co_filename), line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = [(path, line) for path, line in lines if str(path.parent) == folder]
    return f" ({own[-1][0].name}:{own[-1][1]})" if own else ""
