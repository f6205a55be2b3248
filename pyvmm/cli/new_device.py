"""`pyvmm new-device NAME`: a device, its test and a guest with its driver, as a copy of an example under a new name.

An example is EXAMPLE.py in docs/examples (in the wheel pyvmm/examples), and where there are such, test_EXAMPLE.py and
the folders EXAMPLE_guest and EXAMPLE_linux, a driver for Linux. They are whole by themselves, so nothing is filled in:
names change.
"""

from __future__ import annotations

import builtins
import keyword
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pyvmm.errors import UserError, printable, there_are

EXAMPLE: Final = "doubler"
LONGEST: Final = 30
"""Characters of a name: lines with it must not grow too long."""
CLASS: Final = re.compile(r"^class (\w+)\((?:Pci|Virtio)Device\):", re.MULTILINE)
TAKEN: Final = ("Board", "Clock", "GuestMemoryError", "Path", "PciDevice", "VirtioDevice", "GuestVm")
"""Classes that examples import."""


def new_device(name: str, into: Path, like: str) -> str:
    """Write it; what the user can do next. Raises UserError, and then nothing is written."""
    example = _example(like)
    kind = _checked(name)
    old_kind = _kind(example[f"{like}.py"])
    files = {
        into / path.replace(like, name): _renamed(path, data, (like, name), (old_kind, kind))
        for path, data in example.items()
    }
    for path in {into / path.relative_to(into).parts[0]: None for path in files}:
        if path.exists() or path.is_symlink():
            raise UserError(f"new-device: {_shown(path)} is there already: take another name, or --into another folder")
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise UserError(f"new-device {name}: Python knows a module of that name already: take another")
    _write(files)
    return "\n".join([f"{_shown(f'{into / name}.py')} is yours; go on with", *_next_steps(name, kind, into, files)])


def _example(like: str) -> dict[str, bytes]:
    """Its files, by their paths."""
    folder = resources.files("pyvmm") / "examples"
    known = [file.name[:-3] for file in folder.iterdir() if file.name.endswith(".py") and _kind(file.read_bytes())]
    if like not in known:
        raise UserError(f"new-device --like {printable(like)}: no such example; {there_are(like, sorted(known))}")
    places: list[tuple[str, Traversable]] = [(name, folder / name) for name in (f"{like}.py", f"test_{like}.py")]
    for driver in (folder / f"{like}_guest", folder / f"{like}_linux"):
        if driver.is_dir():
            places += [(f"{driver.name}/{file.name}", file) for file in driver.iterdir()]
    return {path: place.read_bytes() for path, place in places if place.is_file()}


def _kind(source: bytes) -> str:
    """The name of the device's class; empty where there is none."""
    found = CLASS.search(source.decode())
    return found[1] if found else ""


def _checked(name: str) -> str:
    """The name of the class for a device that is called *name*. Raises UserError."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > LONGEST:
        rule = f"a small letter, then small letters, digits and _, {LONGEST} in all at the most"
        raise UserError(f"new-device {printable(name)}: that is no name of a module: {rule}")
    kind = "".join(word.capitalize() for word in name.split("_"))
    if keyword.iskeyword(name) or keyword.iskeyword(kind) or hasattr(builtins, kind) or kind in TAKEN:
        raise UserError(f"new-device {name}: {name} or its class, {kind}, is something else already: take another name")
    if name == "conftest" or name.startswith("test_"):
        raise UserError(f"new-device {name}: pytest takes {name}.py for its own: take another name")
    return kind


def _renamed(path: str, data: bytes, names: tuple[str, str], kinds: tuple[str, str]) -> bytes:
    """With other file names, imports and class in Python, where prose may speak of the real chip; in C all names. Bytes
    that are no text stay."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    text = re.sub(rf"\b{kinds[0]}\b", kinds[1], text.replace("docs/examples/", ""))
    if not path.endswith(".py"):
        return re.sub(rf"(?<![A-Za-z]){names[0]}(?![a-z])", names[1], text).encode()
    text = re.sub(rf"(?<![A-Za-z]){names[0]}(?=\.py\b|_guest\b)", names[1], text)
    return re.sub(rf"^from {names[0]} import", f"from {names[1]} import", text, flags=re.MULTILINE).encode()


def _write(files: dict[Path, bytes]) -> None:
    """All of them, or none. Raises UserError."""
    made: list[Path] = []
    try:
        for path, data in files.items():
            for folder in [folder for folder in reversed(path.parents) if not folder.exists()]:
                folder.mkdir()
                made.append(folder)
            with path.open("xb") as file:
                made.append(path)
                file.write(data)
    except OSError as error:
        for path in reversed(made):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise UserError(f"new-device: {printable(str(error.filename))}: {error.strerror}") from None


def _next_steps(name: str, kind: str, into: Path, files: Iterable[Path]) -> list[str]:
    device = shlex.quote(f"{into / name}.py:{kind}")
    test, guest = into / f"test_{name}.py", into / f"{name}_guest"
    steps = [f"pytest {_shown(test)}"] if test in files else []
    if guest / "guest.toml" in files:
        folder = guest if guest.is_absolute() else f"./{guest}"
        run = f"pyvmm run {_shown(folder)} --device {device}"
        steps += [run, f"{run} --trace exits,irq"]
    else:
        steps += [f"pyvmm run --device {device},help", f"pyvmm run -k vmlinuz -i initrd.gz --device {device}"]
    return [f"    {step}" for step in steps]


def _shown(path: str | Path) -> str:
    return shlex.quote(printable(str(path)))
