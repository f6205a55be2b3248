"""The modules of a Linux kernel: which there are, which others one needs, and their code.

Source: modules.dep(5), and kmod's tools/depmod.c for the files beside it: modules.alias (`alias PATTERN NAME`),
modules.softdep (`softdep NAME pre: NAME… post: NAME…`) and modules.builtin (a path a line).
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyvmm.boot.compressed import compression
from pyvmm.boot.error import BootError
from pyvmm.errors import there_are

ENDINGS: Final = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


class Dependencies(NamedTuple):
    """What modules.dep says: modules by name, each with its path and the paths of those that it needs."""

    paths: dict[str, str]
    needs: dict[str, tuple[str, ...]]


def module_name(path: str) -> str:
    """The name that lsmod has for the module in a file: no folder, no ending, _ for -."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def parse_dependencies(text: str) -> Dependencies:
    """modules.dep: `PATH: PATH…` a line. A line that is none is passed over."""
    paths: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        path, colon, rest = line.partition(":")
        path = path.strip()
        if colon and path.endswith(ENDINGS):
            name = module_name(path)
            paths[name] = path
            needs[name] = tuple(module_name(other) for other in rest.split())
    return Dependencies(paths, needs)


class KernelModules:
    """The modules in *folder*, /lib/modules/RELEASE. Raises BootError where that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dependencies = parse_dependencies(self._text("modules.dep", needed=True))
        self._builtin = {module_name(line) for line in self._text("modules.builtin").splitlines()}
        self._aliases: list[tuple[str, str]] | None = None
        self._soft: dict[str, list[str]] | None = None

    def _text(self, name: str, needed: bool = False) -> str:
        try:
            return (self.folder / name).read_text(errors="replace")
        except FileNotFoundError:
            if not needed:
                return ""
            raise BootError(f"{self.folder}: no modules.dep there: it is /lib/modules/RELEASE of a kernel") from None
        except OSError as error:
            raise BootError(f"{self.folder / name}: {error.strerror}") from None

    def path(self, name: str) -> Path:
        return self.folder / self._dependencies.paths[name]

    def closure(self, names: Iterable[str]) -> list[str]:
        """The modules of *names* and all that they need, each after those that it needs; one that is built in needs no
        loading. *names* may be aliases. BootError for one that this kernel has not."""
        order: dict[str, None] = {}
        for name in names:
            for module in self._resolve(name):
                self._visit(module, order, set())
        return list(order)

    def _visit(self, name: str, order: dict[str, None], above: set[str]) -> None:
        if name in order or name in above or name not in self._dependencies.paths:
            return
        for other in (*self._soft_dependencies(name), *self._dependencies.needs[name]):
            self._visit(other, order, above | {name})  # a circle, of a damaged file, ends where it began
        order[name] = None

    def _resolve(self, name: str) -> list[str]:
        wanted = module_name(name)
        if wanted in self._dependencies.paths:
            return [wanted]
        if wanted in self._builtin:
            return []
        found = self._by_alias(name)
        if found:
            return found
        hint = there_are(wanted, sorted(self._dependencies.paths))
        hint = f": {hint}" if hint.startswith("did you mean") else ""  # all of them are thousands
        raise BootError(f"module {name}: not among those in {self.folder}{hint}")

    def _by_alias(self, name: str) -> list[str]:
        if self._aliases is None:
            lines = (line.split() for line in self._text("modules.alias").splitlines())
            self._aliases = [(words[1], words[2]) for words in lines if len(words) == 3 and words[0] == "alias"]
        return [
            module_name(module)
            for pattern, module in self._aliases
            if module_name(module) in self._dependencies.paths and fnmatch.fnmatchcase(name, pattern)
        ]

    def _soft_dependencies(self, name: str) -> list[str]:
        """What is to be loaded first if it is there."""
        if self._soft is None:
            self._soft = {}
            for line in self._text("modules.softdep").splitlines():
                words = line.split()
                if len(words) > 2 and words[0] == "softdep":
                    before = " ".join(words[2:]).partition("pre:")[2].partition("post:")[0].split()
                    self._soft.setdefault(module_name(words[1]), []).extend(before)
        return [module for soft in self._soft.get(name, ()) for module in self._soft_names(soft)]

    def _soft_names(self, soft: str) -> list[str]:
        name = module_name(soft)
        return [name] if name in self._dependencies.paths else self._by_alias(soft)

    def dependencies(self, names: Sequence[str]) -> str:
        """modules.dep of these alone, uncompressed, for the guest's own modprobe."""
        lines = []
        for name in names:
            others = [
                plain(self._dependencies.paths[other]) for other in self._dependencies.needs[name] if other in names
            ]
            lines.append(f"{plain(self._dependencies.paths[name])}: {' '.join(others)}".rstrip())
        return "".join(f"{line}\n" for line in lines)

    def inside(self, name: str) -> str:
        """Where the module lies below its folder, uncompressed."""
        return plain(self._dependencies.paths[name])


def plain(path: str) -> str:
    """A module's path without the ending of its compression; an absolute one, of an old depmod, below its folder."""
    return f"{path.partition('.ko')[0].lstrip('/')}.ko"


def read_module(path: Path) -> bytes:
    """The code of a module, decompressed. Raises BootError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BootError(f"module {path}: {error.strerror}") from None
    try:
        return _decompressed(path, data)
    except (OSError, EOFError, ValueError) as error:
        raise BootError(f"module {path}: damaged: {error}") from None


def _decompressed(path: Path, data: bytes) -> bytes:
    match compression(data[:6]):
        case "":
            return data
        case "gzip":
            import gzip
            import zlib

            try:
                return gzip.decompress(data)
            except zlib.error as error:
                raise ValueError(str(error)) from None
        case "xz":
            import lzma

            try:
                return lzma.decompress(data)
            except lzma.LZMAError as error:
                raise ValueError(str(error)) from None
        case "zstd":
            return _unzstd(path)
        case other:
            raise ValueError(f"compressed with {other}, which no kernel does")


def _unzstd(path: Path) -> bytes:
    """Python has no zstd before 3.14, and who has kernels with such modules has the program."""
    import subprocess

    try:
        done = subprocess.run(["zstd", "-dcq", "--", os.fspath(path)], capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BootError(f"module {path}: needs the program zstd: install zstd") from None
    if done.returncode != 0:
        raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    return done.stdout
