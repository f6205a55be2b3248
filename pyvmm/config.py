"""What the user asked for, as plain data: the command line and Python code fill it in, the machine reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyvmm.errors import UserError
from pyvmm.trace import CHANNELS
from pyvmm.units import MIB

Irqchip = Literal["kernel", "split", "user"]
VirtioInputIdentity = Literal["none", "aero", "standard"]
TripleFault = Literal["report", "reset"]
InputMode = Literal["auto", "ps2", "virtio"]
Display = Literal["none", "x11", "text"]


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

    def check(self) -> None:
        """Raises UserError for values that there are not, or that do not go together."""
        if unknown := sorted(self.trace - {"all", *CHANNELS}):
            names = ", ".join(CHANNELS)
            raise UserError(f"--trace {','.join(unknown)}: there is no such channel; there are: all, {names}")
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
