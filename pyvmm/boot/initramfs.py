"""An initramfs made on the spot: busybox, kernel modules, files of the user's, and our init; nobody needs to be root.

`pyvmm linux` boots with it. What init (the file beside this one) is to do lies in /pyvmm.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from pyvmm.boot.cpio import Archive
from pyvmm.boot.error import BootError
from pyvmm.boot.kernel_modules import KernelModules, module_name, plain, read_module
from pyvmm.boot.shared_libraries import LOADER_CACHE, shared_libraries

INIT: Final = Path(__file__).with_name("init")
AGENT: Final = Path(__file__).with_name("agent")
"""The program that runs commands for who is at the host's end of a port, its argument; it needs no library."""
FOLDERS: Final = ("bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "mnt", "lib/modules", "pyvmm")
NODES: Final = {"console": (5, 1), "null": (1, 3), "tty": (5, 0)}
"""Major and minor (Documentation/admin-guide/devices.txt): what is there before devtmpfs is; init has its own output on
the first."""
ALSO: Final = ("/sbin/modprobe", "/usr/bin/env")
"""Where others look for a program of busybox: the kernel for a module, the first line of a script."""

_DEPENDS: Final = re.compile(rb"(?<![ -~])depends=([\w,-]*)\0")


class Added(NamedTuple):
    """A file or folder of the host's, and where it goes in the guest."""

    file: Path
    path: str

    @classmethod
    def parse(cls, text: str) -> Added:
        """FILE, which goes to /NAME, or FILE:/PATH/IN/GUEST; a path that ends in / is a folder."""
        file, _, path = text.rpartition(":/")
        if not file or os.path.lexists(text):
            return cls(Path(text), f"/{Path(os.path.abspath(text)).name}")
        if not path or path.endswith("/"):
            path += Path(os.path.abspath(file)).name
        return cls(Path(file), f"/{path}")


@dataclass
class Initramfs:
    """What goes into it. Raises BootError for what is not there or may not be read."""

    command: Sequence[str] | None = None
    """The words of the command that init runs; None for a shell on the console."""
    modules: KernelModules | None = None
    load: Sequence[str] = ()
    """Modules to load, with all that they need; a file's path for one of the user's own."""
    added: Sequence[Added] = ()
    terminal: tuple[int, int] | None = None
    """Rows and columns of the shell's terminal."""
    agent: bool = False
    """Whether the agent is there, and waits for its port."""
    _archive: Archive = field(default_factory=Archive, init=False)

    def build(self) -> bytes:
        """The archive, uncompressed: guest RAM is nearer than a decompressor."""
        archive = self._archive = Archive()
        for folder in FOLDERS:
            archive.directory(folder, 0o1777 if folder == "tmp" else 0o755)
        for name, (major, minor) in NODES.items():
            archive.device(f"dev/{name}", major, minor)
        self._add_busybox()
        archive.file("init", INIT.read_bytes(), 0o755)
        archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        archive.file("etc/group", b"root:x:0:\n")
        self._add_modules()
        for added in self.added:
            self._add(added)
        if self.command is not None:
            words = " ".join(map(shlex.quote, self.command))
            archive.file("pyvmm/command", f"exec {words}\n".encode(errors="surrogateescape"))
        if self.agent:
            archive.file("pyvmm/agent", AGENT.read_bytes(), 0o755)
        if self.terminal is not None:
            archive.file("pyvmm/terminal", b"rows %d cols %d\n" % self.terminal)
        return bytes(archive)

    def _add_busybox(self) -> None:
        found = shutil.which("busybox")
        if found is None:
            raise BootError("there is no busybox on PATH: install busybox-static (Debian, Ubuntu) or busybox")
        self._add(Added(Path(found), "/bin/busybox"))
        try:
            applets = subprocess.run([found, "--list"], capture_output=True, stdin=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise BootError(f"{found} --list fails: this busybox does not run here") from None
        for name in applets.stdout.decode(errors="replace").split():
            if name != "busybox":
                self._archive.symlink(f"bin/{name}", "busybox")
        for path in ALSO:
            self._archive.symlink(path, "/bin/busybox")

    def _add_modules(self) -> None:
        own = [text for text in self.load if "/" in text or text.endswith(".ko")]
        codes = {text: read_module(Path(text)) for text in own}
        wanted = [name for name in self.load if name not in own]
        # What a module of the user's own needs comes with it; where that is another one, the user has named it.
        theirs = {module_name(text) for text in own}
        needed = [name for code in codes.values() for name in needs(code) if module_name(name) not in theirs]
        order: list[str] = []
        if self.modules is not None:
            names = self.modules.closure([*wanted, *needed])
            home = f"lib/modules/{self.modules.folder.name}"
            for name in names:
                order.append(f"{home}/{self.modules.inside(name)}")
                self._archive.file(order[-1], read_module(self.modules.path(name)))
            self._archive.file(f"{home}/modules.dep", self.modules.dependencies(names).encode())
        elif wanted or needed:
            raise BootError(
                f"module {(wanted + needed)[0]}: the kernel's modules are not here: name their folder, --modules-dir"
            )
        for text, code in codes.items():
            order.append(f"lib/modules/{plain(Path(text).name)}")
            self._archive.file(order[-1], code)
        self._archive.file("pyvmm/modules", "".join(f"/{path}\n" for path in order).encode(errors="surrogateescape"))

    def _add(self, added: Added) -> None:
        try:
            self._add_tree(os.fspath(added.file), added.path)
        except OSError as error:
            name = added.file if error.filename is None else error.filename
            raise BootError(f"{os.fsdecode(name)}: {error.strerror}") from None

    def _add_tree(self, file: str, path: str) -> None:
        """A folder with all that is in it, where a symbolic link stays one; or a file."""
        if not os.path.isdir(file):
            self._add_file(file, path)
            return
        self._archive.directory(path, stat.S_IMODE(os.stat(file).st_mode))
        with os.scandir(file) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                inside = f"{path}/{entry.name}"
                if entry.is_symlink():
                    self._archive.symlink(inside, os.readlink(entry.path))
                else:
                    self._add_tree(entry.path, inside)

    def _add_file(self, file: str, path: str) -> None:
        """With the shared libraries that it needs, if it is a program."""
        mode = os.stat(file).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise BootError(f"{file}: neither a file nor a folder")
        data = Path(file).read_bytes()
        self._archive.file(path, data, mode)
        libraries = shared_libraries(Path(file), data) if mode & 0o111 else []
        for library in (*libraries, LOADER_CACHE if libraries else ""):
            if library and library not in self._archive and os.path.exists(library):
                self._archive.file(library, Path(library).read_bytes(), os.stat(library).st_mode)


def needs(code: bytes) -> list[str]:
    """The modules that a module says it needs: `depends=NAME,NAME` among the strings of its .modinfo section."""
    found = _DEPENDS.search(code)
    return [name.decode() for name in found[1].split(b",") if name] if found else []
