"""What the ACPI tables of a configured machine have to say: the board's layout in ACPI's terms."""

from __future__ import annotations

from pyvmm.acpi.platform import MadtIoApic, PciRoot, Platform, PowerManagement, Window
from pyvmm.board import layout
from pyvmm.board.memslots import ram_end
from pyvmm.config import MachineConfig
from pyvmm.devices import acpi_pm
from pyvmm.devices.reset_control import RCR_RST_CPU, RCR_SYS_RST
from pyvmm.units import GIB


def describe(config: MachineConfig, phys_bits: int, last_bus: int) -> Platform:
    """The platform that *config* makes with physical addresses of *phys_bits* bits and PCI buses up to *last_bus*.

    An OS looks at each bus that the tables name and no bridge leads to: 32 devices, one or two exits each.
    """
    base = layout.ACPI_PM
    pm = PowerManagement(
        io=Window(base, base + acpi_pm.PM_LENGTH - 1),
        pm1a_event=base + acpi_pm.PM1_STS,
        pm1a_control=base + acpi_pm.PM1_CNT,
        timer=base + acpi_pm.PM_TMR,
        gpe0=base + acpi_pm.GPE0_STS,
        gpe0_length=acpi_pm.GPE0_LENGTH,
        smi_command=layout.APM,
        acpi_enable=acpi_pm.ACPI_ENABLE,
        acpi_disable=acpi_pm.ACPI_DISABLE,
        s5=acpi_pm.SLP_TYP_S5,
        power_button_gpe=acpi_pm.GPE_POWER_BUTTON,
        reset_port=layout.PCI_CONFIG + 1,
        reset_value=RCR_SYS_RST | RCR_RST_CPU,
        sci=layout.IRQ_SCI,
    )
    return Platform(
        cpus=config.cpus,
        pm=pm,
        apic=MadtIoApic(layout.IOAPIC) if config.irqchip != "user" else None,
        pci=PciRoot(
            memory32=Window(layout.PCI_MMIO_START, layout.PCI_MMIO_END - 1),
            memory64=_memory64(config.memory, phys_bits),
            ecam=layout.ECAM_START,
            ecam_length=layout.ECAM_SIZE,
            last_bus=last_bus,
            gsis=layout.PCI_GSIS,
            irqs=layout.PCI_IRQS,
        ),
    )


def _memory64(memory: int, phys_bits: int) -> Window | None:
    """PCI memory above 4 GiB: where it always is, or behind the RAM of a machine that has more than fits below; smaller
    where addresses do not reach so far, down to 1 GiB, and then none."""
    size = layout.PCI_MMIO64_END - layout.PCI_MMIO64_START
    while size >= GIB:
        start = max(size, layout.HOLE_END, (ram_end(memory) + size - 1) // size * size)
        if start + size <= 1 << phys_bits:
            return Window(start, start + size - 1)
        size //= 2
    return None
