"""What the user asked for, as plain data: the command line and Python code fill it in, the machine reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pyvmm.errors import UserError
from pyvmm.trace import CHANNELS
from pyvmm.units import GIB, MIB, size_text

HUGE_PAGE_SIZES: Final = (2 * MIB, GIB)
"""The sizes of the pages that an x86-64 host can keep in a pool."""

Irqchip = Literal["kernel", "split", "user"]
VirtioInputIdentity = Literal["none", "aero", "standard"]
TripleFault = Literal["report", "reset"]
InputMode = Literal["auto", "ps2", "virtio"]
Display = Literal["none", "x11", "text"]


@dataclass(frozen=True)
class Module:
    """A file that the kernel finds in RAM beside itself, with the *arguments* that a Multiboot module may have."""

    file: bytes | str | os.PathLike[str]
    """A path, or the file's bytes."""
    arguments: str = ""


@dataclass(frozen=True)
class MachineConfig:
    """A machine. Sizes are bytes.

    What it boots: *kernel* (any file that boot/ knows, with *flat* to say how a flat binary is entered), or else
    *guest*, one of the guests that come with pyvmm.
    """

    memory: int = 128 * MIB
    memory_shared: bool = False
    """Guest RAM in a memfd, which other processes can map; else it is anonymous memory in transparent huge pages."""
    memory_hugetlb: int | None = None
    """Guest RAM in pages of this size from the host's pool (hugetlbfs): 2 MiB or 1 GiB. Shared too."""
    cpus: int = 1
    kernel: Path | None = None
    initrd: Path | Module | tuple[Path | Module, ...] | None = None
    """Linux's initial RAM disk, several as one; or the modules of a Multiboot kernel, in their order."""
    cmdline: str = ""
    flat: str | None = None
    guest: str | None = None
    guest_parameters: tuple[tuple[str, int], ...] = ()
    irqchip: Irqchip = "kernel"
    virtio_input: VirtioInputIdentity = "none"
    tablet: bool = False
    rng: bool = False
    root_ports: int = 0
    """PCI Express root ports, from slot 0x1c up."""
    devices: tuple[str, ...] = ()
    """PCI devices from the user's own files: FILE:CLASS,KEY=VALUE,..."""
    input: InputMode = "auto"
    triple_fault: TripleFault = "report"
    trace: frozenset[str] = frozenset()

    @property
    def modules(self) -> tuple[Module, ...]:
        """*initrd*, whichever way it was written."""
        if self.initrd is None:
            return ()
        several = self.initrd if isinstance(self.initrd, tuple) else (self.initrd,)
        return tuple(one if isinstance(one, Module) else Module(one) for one in several)

    def check(self) -> None:
        """Raises UserError for values that there are not, or that do not go together."""
        if unknown := sorted(self.trace - {"all", *CHANNELS}):
            names = ", ".join(CHANNELS)
            raise UserError(f"--trace {','.join(unknown)}: there is no such channel; there are: all, {names}")
        if self.memory_hugetlb is not None:
            pages = size_text(self.memory_hugetlb)
            if self.memory_hugetlb not in HUGE_PAGE_SIZES:
                raise UserError(f"-m hugetlb={pages}: the host's huge pages are of 2M or 1G")
            if self.memory % self.memory_hugetlb:
                raise UserError(f"-m {size_text(self.memory)},hugetlb={pages}: the size is no multiple of {pages}")
        if self.irqchip == "user" and self.cpus > 1:
            raise UserError(f"-c {self.cpus} --irqchip user: a PIC serves one CPU: leave -c away")
        if self.input == "virtio" and self.virtio_input == "none":
            raise UserError("--input virtio: this machine has no virtio input devices: add --virtio-input standard")


@dataclass(frozen=True)
class HostConfig:
    """What of this host the machine is connected to while `pyvmm run` runs it."""

    display: Display = "none"
    keyboard: str = "auto"
    mouse: str = "auto"
    type_after: tuple[str, ...] = ()
    """TEXT:KEYS: wait for TEXT on the screen or the serial port, then type KEYS."""
    screenshot: Path | None = None
    """Where the screen goes as a PNG when the machine ends, and at Ctrl-A s."""
    timeout: float | None = None
    no_reboot: bool = False
    trace_file: Path | None = None
