"""Python files of the user's own: loaded once each, and what they raise is one line that names file and line."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from pyvmm.errors import UserError, is_ctrl_c, one_line, printable
from pyvmm.pci.device import PciDevice


class _AsItIsNow(SourceFileLoader):
    """Without a look at cached bytecode, which is told from an older one by whole seconds."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_module(path: Path, loader: type[SourceFileLoader] = SourceFileLoader) -> ModuleType:
    """The module in *path*, one a file; as in a script, what lies in its folder can be imported, and gets this module
    where it imports it by its name."""
    if not path.is_file():
        raise UserError(f"{path} is no Python file")
    path = path.resolve()
    for module in _modules_of(path).values():
        return module
    _let_import_from(path.parent)
    name = path.stem if _means(path.stem, path) else f"pyvmm_device:{path}"
    spec = importlib.util.spec_from_loader(name, loader(name, str(path)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _modules_of(path: Path) -> dict[str, ModuleType]:
    modules = [(name, module) for name, module in sys.modules.items() if isinstance(module, ModuleType)]
    return {name: module for name, module in modules if vars(module).get("__file__") == str(path)}


def load_anew(path: Path) -> ModuleType:
    """As load_module(), of the file as it is now; where that raises, the module is what it was."""
    before = _modules_of(path.resolve())
    for name in before:
        del sys.modules[name]
    try:
        module = load_module(path, _AsItIsNow)
    except BaseException:
        sys.modules.update(before)
        raise
    linecache.checkcache(str(path.resolve()))
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


NOT_INITIALIZED: Final = "super().__init__() was not called?"


def is_initialized(device: object) -> bool:
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
        elif isinstance(error, AttributeError) and not is_initialized(error.obj):
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
