"""Linux kernels as files: the one that this host runs, what release a file is, and where its modules are."""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyvmm.boot.bzimage import BOOT_FLAG, HEADER_MAGIC
from pyvmm.boot.elf import ELF_MAGIC
from pyvmm.boot.error import BootError

PLACES: Final = (
    "/boot/vmlinuz-{release}",  # Debian, Fedora, openSUSE
    "/usr/lib/modules/{release}/vmlinuz",  # Fedora, Arch
    "/lib/modules/{release}/vmlinuz",
    "/boot/kernel-{release}",  # Gentoo
    "/run/booted-system/kernel",  # NixOS
)
MODULE_PLACES: Final = ("/lib/modules", "/usr/lib/modules", "/run/booted-system/kernel-modules/lib/modules")
_VERSION_POINTER: Final = 0x20E
"""Where a bzImage says, less 0x200, where its version is as text (Documentation/x86/boot.rst, kernel_version)."""
_RELEASE: Final = re.compile(rb"[0-9][!-~]{0,127}")
_BANNER: Final = re.compile(rb"Linux version ([0-9][!-~]{0,127}) ")


def host_kernel(release: str, root: Path = Path("/")) -> Path:
    """The file of the kernel of *release*, which is what runs here; BootError where there is none."""
    places = [root / place.format(release=release).lstrip("/") for place in PLACES]
    for place in places:
        if os.path.lexists(place):
            return place
    raise BootError(f"no kernel of this host's Linux {release} (as in {places[0]}): name one with -k")


def check_readable(kernel: Path) -> None:
    """BootError where *kernel* is not there, or may not be read."""
    try:
        os.close(os.open(kernel, os.O_RDONLY | os.O_NONBLOCK))  # of a FIFO nobody may be the writer
    except PermissionError:
        raise BootError(
            f"kernel {kernel}: may be read by root alone: sudo chmod +r {kernel}, or name a copy with -k"
        ) from None
    except OSError as error:
        raise BootError(f"kernel {kernel}: {error.strerror}") from None


def release_of(kernel: Path) -> str:
    """The release that a file is, as uname -r gives it: of a bzImage by its header, of an ELF file by its banner; empty
    where it does not say. Raises BootError where it cannot be read."""
    try:
        with open(kernel, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _release(data)
    except ValueError:  # of an empty file there is no map
        return ""
    except OSError as error:
        raise BootError(f"kernel {kernel}: {error.strerror}") from None


def _release(data: mmap.mmap | bytes) -> str:
    if data[0x202:0x206] == HEADER_MAGIC and data[0x1FE:0x200] == struct.pack("<H", BOOT_FLAG):
        pointer: int = struct.unpack("<H", data[_VERSION_POINTER : _VERSION_POINTER + 2].ljust(2, b"\0"))[0]
        found = _RELEASE.match(data[pointer + 0x200 : pointer + 0x300]) if pointer else None
        return found[0].decode() if found else ""
    if data[:4] == ELF_MAGIC:
        found = _BANNER.search(data)
        return found[1].decode() if found else ""
    return ""


def modules_folder(kernel: Path, release: str, places: Iterable[str] = MODULE_PLACES) -> Path | None:
    """Where the modules of *kernel* are: beside it, where it lies unpacked and not installed (boot/ and lib/modules/),
    or among this host's; None if nowhere."""
    if not release or "/" in release:
        return None
    home = kernel.resolve().parent.parent
    for above in (*(home / place.lstrip("/") for place in MODULE_PLACES[:2]), *map(Path, places)):
        if (above / release / "modules.dep").is_file():
            return above / release
    return None
