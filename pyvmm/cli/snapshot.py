"""`pyvmm snapshot check FILE`: is all of it what was written?"""

from __future__ import annotations

import os
from pathlib import Path

from pyvmm.cli.stdio import complain
from pyvmm.errors import printable
from pyvmm.host.writer import Slowly
from pyvmm.machine.saved import Saved
from pyvmm.units import KIB, size_text


def check(path: Path) -> int:
    """Say what is in it; the exit status. Raises UserError for one that is damaged."""
    saved = Saved(os.fspath(path))
    try:
        file, config = saved.file, saved.config
        file.check(Slowly(f"checking {printable(str(path))}", lambda text: complain(f"pyvmm: {text}")))
        stored = sum(length for _, length in file.runs())
        booted = config.kernel or config.guest or "the default guest"
        cpus = f"{saved.cpus} vCPU{'s' if saved.cpus > 1 else ''}"
        ram = f"{size_text(file.ram.length)} of RAM, {stored // KIB} KiB of it not zero"
        print(f"{printable(str(path))}: whole; {printable(str(booted))}, {cpus}, {ram}")
        return 0
    finally:
        saved.close()
