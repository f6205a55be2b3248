"""`pyvmm dump SOCKET FILE`: a core file of a machine that runs elsewhere, by QMP."""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.cli.machine_socket import connected
from pyvmm.errors import printable
from pyvmm.units import KIB


def dump(path: str, file: Path) -> int:
    """Ask the machine behind socket *path* for an ELF core file, here; the exit status. Raises UserError."""
    where = os.path.abspath(file)
    with connected(path) as client:
        client.execute("dump-guest-memory", paging=True, protocol=f"file:{where}")
    shown = printable(str(file))
    try:
        print(f"{shown}: {os.stat(where).st_blocks * 512 // KIB} KiB; gdb vmlinux {shown}")
    except OSError:  # it is in another mount namespace, a container say
        print(f"{shown}: written, where that machine's process sees it")
    return 0
