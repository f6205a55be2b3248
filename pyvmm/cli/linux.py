"""`pyvmm linux`: this host's kernel or another, with an initramfs made on the spot, and a command in it or a shell."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvmm.agent import PORT
from pyvmm.boot.initramfs import Added, Initramfs
from pyvmm.boot.kernel_modules import KernelModules
from pyvmm.boot.linux_kernel import check_readable, host_kernel, modules_folder, release_of
from pyvmm.cli.backend import NO_LINUX, is_linux
from pyvmm.cli.run import runs_linux
from pyvmm.config import Module
from pyvmm.errors import UserError
from pyvmm.host.streams import NAMES, Streams
from pyvmm.virtio.console import VirtioConsole

CMDLINE: Final = "console=ttyS0 quiet panic=-1"
"""What the kernel has to say comes on COM1; a kernel that panics resets at once, which ends the machine."""
STREAM_MODULES: Final = ("virtio_pci", "virtio_console")
"""What the command's streams and other ports need."""


def prepare(arguments: argparse.Namespace, command: Sequence[str] | None) -> Streams | None:
    """Make of the arguments of `pyvmm linux` those of `pyvmm run`; the streams of *command*, if there is one. Raises
    UserError."""
    if arguments.misplaced:
        raise UserError(f"a command goes behind --, as in pyvmm linux -- {shlex.join(arguments.misplaced)}")
    if command is not None and not command:
        raise UserError("--: name the command behind it, as in pyvmm linux -- uname -a")
    kernel = arguments.kernel if arguments.kernel is not None else host_kernel(os.uname().release)
    check_readable(kernel)
    if not is_linux(kernel):
        raise UserError(f"kernel {kernel}: no Linux kernel, neither a bzImage nor a vmlinux")
    archive = initramfs(arguments, kernel, command).build()
    if not runs_linux():
        raise UserError(NO_LINUX)
    arguments.kernel = kernel
    arguments.cmdline = f"{CMDLINE} {arguments.cmdline}".rstrip()
    arguments.initrd = [Module(archive), *arguments.initrd]  # of two files of a name the later is the guest's
    if arguments.virtio_input is None:
        arguments.virtio_input = "none"  # nobody types there, and each is one more to look for
    if command is None:
        return None
    arguments.no_reboot = True
    console = VirtioConsole(NAMES)
    arguments.device = [*arguments.device, console]
    return Streams(console)


def initramfs(arguments: argparse.Namespace, kernel: Path, command: Sequence[str] | None) -> Initramfs:
    """What the arguments ask for, for *kernel*. Raises UserError."""
    release = release_of(kernel)
    folder = arguments.modules_dir or modules_folder(kernel, release)
    names = [name for text in arguments.modules for name in text.split(",") if name]
    if folder is None and not all(name.endswith(".ko") for name in names):
        whose = f"of Linux {release}" if release else f"of {kernel}, which does not tell its release,"
        raise UserError(
            f"--modules {','.join(names)}: the modules {whose} are not here: name their folder, --modules-dir"
        )
    modules = KernelModules(folder) if folder is not None else None
    agent = any(f",port.{PORT}" in device for device in arguments.device if isinstance(device, str))
    ports = any(device.startswith("virtio-console") for device in arguments.device if isinstance(device, str))
    needed = STREAM_MODULES if (command is not None or ports) and modules is not None else ()
    return Initramfs(
        command=command,
        modules=modules,
        load=[*needed, *names],
        added=[Added.parse(text) for text in arguments.add],
        terminal=_terminal() if command is None else None,
        agent=agent,
    )


def _terminal() -> tuple[int, int] | None:
    """Rows and columns of this terminal."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return None
    return (size.lines, size.columns) if size.lines and size.columns else None
