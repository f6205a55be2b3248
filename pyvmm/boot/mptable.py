"""The MP table: the CPUs, the I/O APIC and how interrupts reach it, for a system that does not use ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4. A floating pointer of 16 bytes on a 16-byte boundary in the
first KiB of the EBDA, the last KiB of base memory or 0xF0000-0xFFFFF (4.1) names the configuration table: a header of
44 bytes and entries in the order of their type.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.boot.lowmem import BIOS_GPA, HIGH_MEMORY_GPA, MPTABLE_GPA

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

MP_PROCESSOR: Final = 0
MP_BUS: Final = 1
MP_IOAPIC: Final = 2
MP_INTSRC: Final = 3
MP_LINTSRC: Final = 4

CPU_ENABLED: Final = 1
CPU_BOOTPROCESSOR: Final = 2
MPC_APIC_USABLE: Final = 1

MP_INT: Final = 0
MP_NMI: Final = 1
MP_EXTINT: Final = 3

MP_IRQPOL_ACTIVE_LOW: Final = 0x3
MP_IRQTRIG_LEVEL: Final = 0xC
PCI_INTERRUPT: Final = MP_IRQPOL_ACTIVE_LOW | MP_IRQTRIG_LEVEL
"""How a PCI interrupt arrives; an ISA interrupt is 0, "conforms to the bus"."""

MP_APIC_ALL: Final = 0xFF
MAX_APIC_ID: Final = 0xFE
"""The highest id of a CPU that the table can name: the field is a byte, and 0xFF is a broadcast."""

LAPIC_GPA: Final = 0xFEE00000
IOAPIC_GPA: Final = 0xFEC00000
LAPIC_VERSION: Final = 0x14
IOAPIC_PINS: Final = 24
IOAPIC_VERSION: Final = 0x11
"""What KVM's local APIC and I/O APIC say of themselves."""

_POINTER: Final = struct.Struct("<4s I B B B B B 3x")
_HEADER: Final = struct.Struct("<4s H B B 8s 12s I H H I I")
_PROCESSOR: Final = struct.Struct("<B B B B I I 8x")
_BUS: Final = struct.Struct("<B B 6s")
_IOAPIC: Final = struct.Struct("<B B B B I")
_INTERRUPT: Final = struct.Struct("<B B H B B B B")


class PciInterrupt(NamedTuple):
    """Pin *pin* (0 is INTA) of *device* on PCI bus *bus* arrives at input *gsi* of the I/O APIC, level, active low."""

    device: int
    pin: int
    gsi: int
    bus: int = 0


def write_mptable(
    memory: GuestMemory,
    apic_ids: Sequence[int],
    *,
    gpa: int = MPTABLE_GPA,
    ioapic_id: int | None = None,
    timer_pin: int = 2,
    pci_interrupts: Collection[PciInterrupt] = (),
    cpu_signature: int = 0x600,
    cpu_features: int = 0x201,
) -> int:
    """Write pointer and table to *gpa*, which is 16-byte aligned in 0xF0000-0xFFFFF, and return where they end.

    The first of *apic_ids* is the boot CPU. *ioapic_id* is the next free id if there is one of 4 bits, else 0, which
    nobody minds since APICs have no bus of their own. ISA interrupt 0 arrives at *timer_pin*; an ISA interrupt whose
    I/O APIC input a PCI interrupt has is left out. *cpu_signature* and *cpu_features* are EAX and EDX of CPUID leaf 1.
    Raises ValueError for ids and addresses that the table cannot hold. 255 CPUs take 5.2 KiB.
    """
    table = mptable(
        apic_ids,
        ioapic_id=ioapic_id,
        timer_pin=timer_pin,
        pci_interrupts=pci_interrupts,
        cpu_signature=cpu_signature,
        cpu_features=cpu_features,
    )
    end = gpa + _POINTER.size + len(table)
    if gpa & 15 or gpa < BIOS_GPA or end > HIGH_MEMORY_GPA:
        raise ValueError(f"no place for an MP table: {gpa:#x}-{end:#x}")
    pointer = bytearray(_POINTER.pack(b"_MP_", gpa + _POINTER.size, 1, 4, 0, 0, 0))
    pointer[10] = -sum(pointer) & 0xFF
    memory.write(gpa, pointer + table)
    return end


def mptable(
    apic_ids: Sequence[int],
    *,
    ioapic_id: int | None = None,
    timer_pin: int = 2,
    pci_interrupts: Collection[PciInterrupt] = (),
    cpu_signature: int = 0x600,
    cpu_features: int = 0x201,
) -> bytes:
    """The configuration table alone; arguments as in write_mptable."""
    if not apic_ids or len(set(apic_ids)) != len(apic_ids) or not all(0 <= id <= MAX_APIC_ID for id in apic_ids):
        raise ValueError("an MP table needs APIC ids that differ, each 0 to 254")
    if ioapic_id is None:
        ioapic_id = max(apic_ids) + 1 if max(apic_ids) < 0xF else 0
    boot_cpu = apic_ids[0]
    entries = [
        _PROCESSOR.pack(
            MP_PROCESSOR,
            apic_id,
            LAPIC_VERSION,
            CPU_ENABLED | (CPU_BOOTPROCESSOR if apic_id == boot_cpu else 0),
            cpu_signature,
            cpu_features,
        )
        for apic_id in apic_ids
    ]
    # PCI buses go by their own numbers, so ISA comes after the last.
    pci_buses = sorted({0, *(interrupt.bus for interrupt in pci_interrupts)}) if pci_interrupts else []
    isa = pci_buses[-1] + 1 if pci_buses else 0
    entries += [_BUS.pack(MP_BUS, bus, b"PCI   ") for bus in pci_buses]
    entries.append(_BUS.pack(MP_BUS, isa, b"ISA   "))
    entries.append(_IOAPIC.pack(MP_IOAPIC, ioapic_id, IOAPIC_VERSION, MPC_APIC_USABLE, IOAPIC_GPA))

    def interrupt(kind: int, flags: int, bus: int, irq: int, apic: int, pin: int, entry: int = MP_INTSRC) -> bytes:
        return _INTERRUPT.pack(entry, kind, flags, bus, irq, apic, pin)

    taken = {route.gsi for route in pci_interrupts}
    for irq in range(16):
        pin = timer_pin if irq == 0 else irq
        # Line 2 is the cascade of the second PIC: no device has it.
        if irq != 2 and pin not in taken:
            entries.append(interrupt(MP_INT, 0, isa, irq, ioapic_id, pin))
    for route in sorted(set(pci_interrupts), key=lambda route: (route.bus, route.device, route.pin)):
        if route.device not in range(32) or route.pin not in range(4) or route.gsi not in range(IOAPIC_PINS):
            raise ValueError(f"no PCI interrupt: {route}")
        source = route.device << 2 | route.pin
        entries.append(interrupt(MP_INT, PCI_INTERRUPT, route.bus, source, ioapic_id, route.gsi))
    entries.append(interrupt(MP_EXTINT, 0, isa, 0, boot_cpu, 0, MP_LINTSRC))
    entries.append(interrupt(MP_NMI, 0, isa, 0, MP_APIC_ALL, 1, MP_LINTSRC))

    body = b"".join(entries)
    table = bytearray(
        _HEADER.pack(
            b"PCMP",
            _HEADER.size + len(body),
            4,
            0,
            b"PYVMM   ",
            b"PYVMM PC    ",
            0,
            0,
            len(entries),
            LAPIC_GPA,
            0,
        )
    )
    table += body
    table[7] = -sum(table) & 0xFF
    return bytes(table)
