"""Where things are in the guest: physical addresses, ports and interrupts, one table each."""

from __future__ import annotations

from typing import Final

from pyvmm.boot.lowmem import HOLE_GPA
from pyvmm.units import GIB, MIB

# Guest physical addresses
LOW_RAM_END: Final = 0xA0000
"""End of base memory (640 KiB); the VGA window follows."""
VGA_FRAME: Final = 0xA0000
VGA_FRAME_SIZE: Final = 0x10000
VGA_TEXT: Final = 0xB8000
VGA_TEXT_SIZE: Final = 0x8000
HIGH_MEMORY: Final = 0xC0000
"""RAM again from here (shadowed ROM area on a PC), up to the hole."""
ACPI_TABLES: Final = 0xE0000
ACPI_TABLES_SIZE: Final = 0x10000
"""Where an OS looks for the RSDP; the MP table follows at 0xF0000."""
FACS: Final = ACPI_TABLES + 0x40
"""Where among them the guest leaves where it goes on after S3: 64 bytes behind the RSDP."""
FACS_SIZE: Final = 64
HOLE_START: Final = HOLE_GPA
HOLE_END: Final = 4 * GIB
"""The 3-4 GiB hole of devices; RAM that does not fit below it continues at 4 GiB."""
PCI_MMIO_START: Final = 0xC0000000
PCI_MMIO_END: Final = 0xE0000000
PCI_MMIO_HIGH_START: Final = 0xF0000000
PCI_MMIO_HIGH_END: Final = 0xFEC00000
"""Between ECAM and the IOAPIC: where SeaBIOS puts BARs."""
PCI_MMIO64_START: Final = 1 << 38
PCI_MMIO64_END: Final = 1 << 39
ECAM_START: Final = 0xE0000000
ECAM_SIZE: Final = 256 * MIB
IOAPIC: Final = 0xFEC00000
IOAPIC_SIZE: Final = 0x1000
LAPIC: Final = 0xFEE00000
IDENTITY_MAP: Final = 0xFEFFC000
TSS: Final = 0xFEFFD000
"""Three pages after the identity map page, which Intel hosts want for real mode."""

# Ports
PIC_MASTER: Final = 0x20
PIT: Final = 0x40
I8042_DATA: Final = 0x60
SYSTEM_CONTROL_B: Final = 0x61
I8042_COMMAND: Final = 0x64
CMOS: Final = 0x70
POST: Final = 0x80
SYSTEM_CONTROL_A: Final = 0x92
PIC_SLAVE: Final = 0xA0
APM: Final = 0xB2
DEBUGCON: Final = 0xE9
DEBUG_EXIT: Final = 0xF4
COM1: Final = 0x3F8
BIOS_LOG: Final = 0x402
BIOS_CALLS: Final = 0x404
ELCR: Final = 0x4D0
FW_CFG: Final = 0x510
ACPI_PM: Final = 0x600
MEMORY_HOTPLUG: Final = 0xA00
PCI_HOTPLUG: Final = 0xAE00
CPU_HOTPLUG: Final = 0xCD8
"""Where OVMF looks for it on a Q35."""
PCI_CONFIG: Final = 0xCF8
"""CONFIG_ADDRESS and CONFIG_DATA, 8 ports; the reset control register 0xCF9 is inside."""

PIC_PORTS: Final = ((PIC_MASTER, 2), (PIC_SLAVE, 2), (ELCR, 2))

# Interrupts: ISA IRQ numbers, which are GSIs too (but IRQ 0 is GSI 2 on the IOAPIC)
IRQ_TIMER: Final = 0
IRQ_KEYBOARD: Final = 1
IRQ_CASCADE: Final = 2
IRQ_COM1: Final = 4
IRQ_RTC: Final = 8
IRQ_SCI: Final = 9
IRQ_MOUSE: Final = 12
IRQ_IDE: Final = (14, 15)
"""Of the primary and the secondary channel."""
PCI_GSIS: Final = (16, 17, 18, 19)
"""Where PIRQA-PIRQD arrive at the IOAPIC ..."""
PCI_IRQS: Final = (10, 11, 10, 11)
"""... and, for a guest that uses the PIC, which ISA IRQs they are."""
PCI_IO: Final = (0xC000, 0x10000)
"""Where firmware puts I/O BARs."""
IOAPIC_PINS: Final = 24
FIRST_MSI_GSI: Final = IOAPIC_PINS

# PCI slots of bus 0
VIRTIO_INPUT_SLOT: Final = 0x0A
HOTPLUG_SLOTS: Final = range(1, VIRTIO_INPUT_SLOT)
"""Where devices may come at any time; an OS has a device of its own for each."""
ROOT_PORT_SLOT: Final = 0x1C
"""The first PCI Express root port; up to config.MAX_ROOT_PORTS follow each other."""
