"""The sockets of the CPUs: which there may be, which are there, and where there may be more, the chip that tells of it.

What a CPU is, a thread and a vCPU of KVM's, is not the board's business; the machine follows what stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from pyvmm.board import layout
from pyvmm.devices.cpu_hotplug import CPU_HOTPLUG_LENGTH, GPE_CPU_HOTPLUG, CpuHotplug
from pyvmm.errors import UserError
from pyvmm.trace import OFF, Channel

if TYPE_CHECKING:
    from pyvmm.board.placement import Parts
    from pyvmm.devices.acpi_pm import AcpiPm

PART: Final = "cpu-hotplug"


class CpuSockets:
    """*cpus* are there from the start; where *most* is given they come and go, up to so many, and the chip is among
    *parts*."""

    def __init__(self, parts: Parts, pm: AcpiPm, cpus: int, most: int | None, trace: Channel = OFF) -> None:
        self._pm = pm
        self._cpus = cpus
        self.possible = cpus if most is None else most
        """How many there may be: numbers 0 up to that."""
        self.ejected: Callable[[int], None] = lambda cpu: None
        """Told, in the middle of a guest's access, of a CPU that the guest has let go of."""
        self.refused: Callable[[int, int, int], None] = lambda cpu, event, status: None
        """Told of one that it does not take or let go of, with the event and the status of its _OST."""
        self._chip: CpuHotplug | None = None
        if most is not None:
            self._chip = parts.add(
                PART,
                CpuHotplug(
                    most,
                    cpus,
                    partial(pm.raise_gpe, GPE_CPU_HOTPLUG),
                    lambda cpu: self.ejected(cpu),
                    lambda cpu, event, status: self.refused(cpu, event, status),
                    trace,
                ),
                ports=[(layout.CPU_HOTPLUG, CPU_HOTPLUG_LENGTH)],
            )

    @property
    def present(self) -> tuple[int, ...]:
        """The numbers of those that are there."""
        if self._chip is None:
            return tuple(range(self._cpus))
        return tuple(cpu for cpu in range(self.possible) if self._chip.present >> cpu & 1)

    @property
    def chip(self) -> CpuHotplug:
        """Raises UserError where none comes or goes."""
        if self._chip is None:
            raise UserError("the CPUs of this machine stay what they are: start it with -c CPUS,max=MOST")
        return self._chip

    @property
    def leaving(self) -> tuple[int, ...]:
        """Those that the guest was asked to let go of."""
        chip = self._chip
        return () if chip is None else tuple(cpu for cpu in self.present if chip.leaving(cpu))

    def ask_to_eject(self, cpu: int) -> None:
        """Ask the guest to let go of CPU number *cpu*; once more where it has been asked. Raises UserError where nobody
        in the guest would hear of it."""
        if not self._pm.hears(GPE_CPU_HOTPLUG):
            raise UserError("its guest does not use ACPI, and would not hear of it: end the machine to take it out")
        self.chip.ask_to_eject(cpu)
