"""pyvmm: a KVM virtual machine monitor whose machine is written in Python.

`from pyvmm import Machine, MachineConfig, PciDevice …` is the public surface; each name is imported when first asked
for, so that a device does not pay for the machine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig as MachineConfig
    from pyvmm.control.core.write import write_core as write_core
    from pyvmm.control.drgn.program import core_program as core_program
    from pyvmm.control.drgn.program import machine_program as machine_program
    from pyvmm.control.drgn.program import vcpu_trace as vcpu_trace
    from pyvmm.control.gdb.server import GdbServer as GdbServer
    from pyvmm.control.qmp.server import QmpServer as QmpServer
    from pyvmm.errors import UserError as UserError
    from pyvmm.machine.machine import Machine as Machine
    from pyvmm.machine.outcome import End as End
    from pyvmm.machine.outcome import Outcome as Outcome
    from pyvmm.pci.device import PciDevice as PciDevice
    from pyvmm.virtio.device import VirtioDevice as VirtioDevice

_PUBLIC = {
    "End": "pyvmm.machine.outcome",
    "GdbServer": "pyvmm.control.gdb.server",
    "Machine": "pyvmm.machine.machine",
    "MachineConfig": "pyvmm.config",
    "Outcome": "pyvmm.machine.outcome",
    "PciDevice": "pyvmm.pci.device",
    "QmpServer": "pyvmm.control.qmp.server",
    "UserError": "pyvmm.errors",
    "VirtioDevice": "pyvmm.virtio.device",
    "core_program": "pyvmm.control.drgn.program",
    "machine_program": "pyvmm.control.drgn.program",
    "vcpu_trace": "pyvmm.control.drgn.program",
    "write_core": "pyvmm.control.core.write",
}
__all__ = sorted(_PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pyvmm' has no attribute {name!r}; there are: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)
