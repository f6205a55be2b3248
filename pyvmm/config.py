"""What the user asked for, as plain data: the command line and Python code fill it in, the machine reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .layout import MIB

Irqchip = Literal["kernel", "split", "user"]


@dataclass(frozen=True)
class MachineConfig:
    """A machine. Sizes are bytes.

    What it boots: *kernel* (any file that boot/ knows, with *flat* to say how a flat binary is entered), or else
    *guest*, one of the guests that come with pyvmm.
    """

    memory: int = 128 * MIB
    cpus: int = 1
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    flat: str | None = None
    guest: str | None = None
    guest_parameters: tuple[tuple[str, int], ...] = ()
    irqchip: Irqchip = "kernel"
    trace: frozenset[str] = frozenset()
