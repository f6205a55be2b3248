"""A guest's driver of hot-plug, as a model: what it would do to the board's ports is done from outside."""

from __future__ import annotations

from pyvmm import Machine
from pyvmm.board import layout
from pyvmm.devices.acpi_pm import ACPI_ENABLE, GPE0_EN, GPE0_STS
from pyvmm.devices.pci_hotplug import GPE_PCI_HOTPLUG
from pyvmm.pci import regs
from pyvmm.pci.root_port import RootPort


class HotplugDriver:
    """A machine that runs, and its guest's driver of hot-plug."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.events: list[tuple[str, str]] = []
        machine.events.add(lambda event: self.events.append((event.kind, event.message)))

    def read(self, register: int) -> int:
        return self.machine.call(lambda: self.machine.board.pio.read(layout.PCI_HOTPLUG + register, 4))

    def write(self, register: int, value: int) -> None:
        self.machine.call(lambda: self.machine.board.pio.write(layout.PCI_HOTPLUG + register, 4, value))

    def turn_acpi_on(self) -> None:
        def turn_on() -> None:
            self.machine.board.pio.write(layout.APM, 1, ACPI_ENABLE)
            self.machine.board.pio.write(layout.ACPI_PM + GPE0_EN, 2, 1 << GPE_PCI_HOTPLUG)

        self.machine.call(turn_on)

    def look(self) -> list[int]:
        """Into all slots of bus 0, as an OS or firmware does that looks for devices; those that have one."""

        def scan() -> list[int]:
            ecam = self.machine.board.pci.ecam
            return [slot for slot in range(32) if ecam.read(regs.pci_devfn(slot, 0) << 12, 4) != 0xFFFFFFFF]

        return self.machine.call(scan)

    def take_event(self) -> bool:
        """Whether the general-purpose event has come since."""

        def take() -> bool:
            port, bit = layout.ACPI_PM + GPE0_STS, 1 << GPE_PCI_HOTPLUG
            came = bool(self.machine.board.pio.read(port, 2) & bit)
            self.machine.board.pio.write(port, 2, bit)
            return came

        return self.machine.call(take)

    def port(self, number: int = 0) -> RootPort:
        port = self.machine.board.pci.root.functions[regs.pci_devfn(layout.ROOT_PORT_SLOT + number, 0)]
        assert isinstance(port, RootPort)
        return port

    def express(self, register: int, value: int | None = None) -> int:
        """Of port 0: its PCI Express capability's register, which is written where there is a *value*."""
        port = self.port()
        at = port.config.find_capability(regs.PCI_CAP_ID_EXP) + register
        if value is not None:
            self.machine.call(lambda: port.config_write(at, 2, value))
            return value
        return self.machine.call(lambda: port.config_read(at, 2))

    def gone(self, name: str) -> bool:
        return self.machine.wait(lambda: name not in self.machine.board.devices)
