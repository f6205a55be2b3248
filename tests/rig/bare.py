"""Programs that need nothing of the guest that they run in, from the C files beside the tests that boot Linux."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.rig.lab import ROOT


def compiled(name: str, folder: Path) -> Path:
    """The program of tests/boot/NAME.c, made in *folder*."""
    flags = ["-O1", "-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none"]
    subprocess.run(["gcc", *flags, "-o", folder / name, ROOT / "tests" / "boot" / f"{name}.c"], check=True)
    return folder / name
