"""The fixed-format tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, HPET, SRAT.

They follow ACPI 2.0, which Linux 2.6.10 (ACPICA 20041105) and today's Linux read alike: an FADT of revision 3 and 244
bytes with both its 32-bit and its X_ fields, and an RSDP of revision 2. Field names are the specification's.

Source: ACPI 6.5, 5.2; PCI Firmware 3.3, 4.1.2 (MCFG); IA-PC HPET 1.0a, 3.2.4.
"""

from __future__ import annotations

import struct
from ctypes import LittleEndianStructure, c_char, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

from pyvmm.acpi import sdt
from pyvmm.acpi.platform import KEYBOARD, RTC, MadtIoApic, MemoryHotplugBlock, PciRoot, Platform, Window

LAPIC_ADDRESS: Final = 0xFEE00000

# Generic Address Structure, 5.2.3.2.
SYSTEM_MEMORY: Final = 0
SYSTEM_IO: Final = 1
ACCESS_BYTE: Final = 1
ACCESS_WORD: Final = 2
ACCESS_DWORD: Final = 3

# FADT Flags, table 5.10.
WBINVD: Final = 1 << 0
PROC_C1: Final = 1 << 2
PWR_BUTTON: Final = 1 << 4
TMR_VAL_EXT: Final = 1 << 8
RESET_REG_SUP: Final = 1 << 10

# FADT IA-PC Boot Architecture Flags, table 5.11.
LEGACY_DEVICES: Final = 1 << 0
B8042: Final = 1 << 1
VGA_NOT_PRESENT: Final = 1 << 2
CMOS_RTC_NOT_PRESENT: Final = 1 << 5

PROFILE_DESKTOP: Final = 1
P_LVL2_NONE: Final = 101
"""P_LVL2_LAT above 100 µs: no C2."""
P_LVL3_NONE: Final = 1001
"""P_LVL3_LAT above 1000 µs: no C3."""
CMOS_CENTURY: Final = 0x32

# MADT, 5.2.12.
PCAT_COMPAT: Final = 1
LAPIC_ENABLED: Final = 1
LAPIC_ONLINE_CAPABLE: Final = 2
"""Not there, but it may come; of MADT revision 5 on (ACPI 6.3), before which Linux takes it for one that never does."""
MPS_INTI_CONFORMS: Final = 0
MPS_INTI_ACTIVE_HIGH_LEVEL: Final = 0b11_01
ALL_PROCESSORS: Final = 0xFF

# SRAT, 5.2.16.
SRAT_REVISION: Final = 3
SRAT_RESERVED: Final = 1
"""Of the first field behind the header, for the sake of old systems."""
AFFINITY_ENABLED: Final = 1 << 0
AFFINITY_HOT_PLUGGABLE: Final = 1 << 1

HPET_EVENT_TIMER_BLOCK_ID: Final = 0x8086A201
"""Vendor 8086, legacy replacement, 64-bit counter, 3 comparators, revision 1."""


class Gas(LittleEndianStructure):
    """Generic Address Structure, 5.2.3.2."""

    _pack_ = 1
    _fields_ = (
        ("Address_Space_ID", c_uint8),
        ("Register_Bit_Width", c_uint8),
        ("Register_Bit_Offset", c_uint8),
        ("Access_Size", c_uint8),
        ("Address", c_uint64),
    )


class Rsdp(LittleEndianStructure):
    """Root System Description Pointer, 5.2.5.3."""

    _pack_ = 1
    _fields_ = (
        ("Signature", c_char * 8),
        ("Checksum", c_uint8),
        ("OEMID", c_char * 6),
        ("Revision", c_uint8),
        ("RsdtAddress", c_uint32),
        ("Length", c_uint32),
        ("XsdtAddress", c_uint64),
        ("Extended_Checksum", c_uint8),
        ("Reserved", c_uint8 * 3),
    )


class FadtBody(LittleEndianStructure):
    """Fixed ACPI Description Table behind its header, 5.2.9, as far as ACPI 2.0 had it."""

    _pack_ = 1
    _fields_ = (
        ("FIRMWARE_CTRL", c_uint32),
        ("DSDT", c_uint32),
        ("Reserved_INT_MODEL", c_uint8),
        ("Preferred_PM_Profile", c_uint8),
        ("SCI_INT", c_uint16),
        ("SMI_CMD", c_uint32),
        ("ACPI_ENABLE", c_uint8),
        ("ACPI_DISABLE", c_uint8),
        ("S4BIOS_REQ", c_uint8),
        ("PSTATE_CNT", c_uint8),
        ("PM1a_EVT_BLK", c_uint32),
        ("PM1b_EVT_BLK", c_uint32),
        ("PM1a_CNT_BLK", c_uint32),
        ("PM1b_CNT_BLK", c_uint32),
        ("PM2_CNT_BLK", c_uint32),
        ("PM_TMR_BLK", c_uint32),
        ("GPE0_BLK", c_uint32),
        ("GPE1_BLK", c_uint32),
        ("PM1_EVT_LEN", c_uint8),
        ("PM1_CNT_LEN", c_uint8),
        ("PM2_CNT_LEN", c_uint8),
        ("PM_TMR_LEN", c_uint8),
        ("GPE0_BLK_LEN", c_uint8),
        ("GPE1_BLK_LEN", c_uint8),
        ("GPE1_BASE", c_uint8),
        ("CST_CNT", c_uint8),
        ("P_LVL2_LAT", c_uint16),
        ("P_LVL3_LAT", c_uint16),
        ("FLUSH_SIZE", c_uint16),
        ("FLUSH_STRIDE", c_uint16),
        ("DUTY_OFFSET", c_uint8),
        ("DUTY_WIDTH", c_uint8),
        ("DAY_ALRM", c_uint8),
        ("MON_ALRM", c_uint8),
        ("CENTURY", c_uint8),
        ("IAPC_BOOT_ARCH", c_uint16),
        ("Reserved1", c_uint8),
        ("Flags", c_uint32),
        ("RESET_REG", Gas),
        ("RESET_VALUE", c_uint8),
        ("Reserved2", c_uint8 * 3),
        ("X_FIRMWARE_CTRL", c_uint64),
        ("X_DSDT", c_uint64),
        ("X_PM1a_EVT_BLK", Gas),
        ("X_PM1b_EVT_BLK", Gas),
        ("X_PM1a_CNT_BLK", Gas),
        ("X_PM1b_CNT_BLK", Gas),
        ("X_PM2_CNT_BLK", Gas),
        ("X_PM_TMR_BLK", Gas),
        ("X_GPE0_BLK", Gas),
        ("X_GPE1_BLK", Gas),
    )


class FacsTable(LittleEndianStructure):
    """Firmware ACPI Control Structure, 5.2.10; it has no checksum, as the OS writes into it."""

    _pack_ = 1
    _fields_ = (
        ("Signature", c_char * 4),
        ("Length", c_uint32),
        ("Hardware_Signature", c_uint32),
        ("Firmware_Waking_Vector", c_uint32),
        ("Global_Lock", c_uint32),
        ("Flags", c_uint32),
        ("X_Firmware_Waking_Vector", c_uint64),
        ("Version", c_uint8),
        ("Reserved", c_uint8 * 31),
    )


class HpetBody(LittleEndianStructure):
    """HPET description table behind its header, IA-PC HPET 1.0a 3.2.4."""

    _pack_ = 1
    _fields_ = (
        ("Event_Timer_Block_ID", c_uint32),
        ("BASE_ADDRESS", Gas),
        ("HPET_Number", c_uint8),
        ("Main_Counter_Minimum_Clock_Tick", c_uint16),
        ("Page_Protection_And_OEM_Attribute", c_uint8),
    )


def _io(address: int, length: int, access: int) -> Gas:
    return Gas(SYSTEM_IO, 8 * length, 0, access, address)


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """The root pointer, 36 bytes, to the tables at these addresses; two checksums, over 20 bytes and over all."""
    pointer = Rsdp(b"RSD PTR ", 0, sdt.OEM_ID, 2, rsdt, 36, xsdt)
    pointer.Checksum = sdt.checksum(bytes(pointer)[:20])
    pointer.Extended_Checksum = sdt.checksum(bytes(pointer))
    return bytes(pointer)


def rsdt(addresses: list[int]) -> bytes:
    """The root table with 32-bit addresses (5.2.7)."""
    return sdt.table(b"RSDT", 1, struct.pack(f"<{len(addresses)}I", *addresses))


def xsdt(addresses: list[int]) -> bytes:
    """The root table with 64-bit addresses (5.2.8)."""
    return sdt.table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def fadt(platform: Platform, facs: int, dsdt: int) -> bytes:
    """The FADT of *platform*; *facs* and *dsdt* are the addresses of those tables."""
    pm = platform.pm
    boot = LEGACY_DEVICES
    boot |= B8042 if platform.has(KEYBOARD) else 0
    boot |= 0 if platform.vga else VGA_NOT_PRESENT
    boot |= 0 if platform.has(RTC) else CMOS_RTC_NOT_PRESENT
    body = FadtBody(
        FIRMWARE_CTRL=facs,  # X_FIRMWARE_CTRL stays 0: at most one of the two may be set
        DSDT=dsdt,
        Preferred_PM_Profile=PROFILE_DESKTOP,
        SCI_INT=pm.sci,
        SMI_CMD=pm.smi_command,
        ACPI_ENABLE=pm.acpi_enable,
        ACPI_DISABLE=pm.acpi_disable,
        PM1a_EVT_BLK=pm.pm1a_event,
        PM1a_CNT_BLK=pm.pm1a_control,
        PM_TMR_BLK=pm.timer,
        GPE0_BLK=pm.gpe0,
        PM1_EVT_LEN=4,
        PM1_CNT_LEN=2,
        PM_TMR_LEN=4,
        GPE0_BLK_LEN=pm.gpe0_length,
        P_LVL2_LAT=P_LVL2_NONE,
        P_LVL3_LAT=P_LVL3_NONE,
        CENTURY=CMOS_CENTURY if platform.has(RTC) else 0,
        IAPC_BOOT_ARCH=boot,
        # PWR_BUTTON says "not in the fixed registers": the power button is PWRB. SLP_BUTTON and FIX_RTC would say so
        # of the sleep button and of the RTC's alarm, which are there.
        Flags=WBINVD | PROC_C1 | PWR_BUTTON | TMR_VAL_EXT | RESET_REG_SUP,
        RESET_REG=_io(pm.reset_port, 1, ACCESS_BYTE),
        RESET_VALUE=pm.reset_value,
        X_DSDT=dsdt,
        X_PM1a_EVT_BLK=_io(pm.pm1a_event, 4, ACCESS_WORD),
        X_PM1a_CNT_BLK=_io(pm.pm1a_control, 2, ACCESS_WORD),
        X_PM_TMR_BLK=_io(pm.timer, 4, ACCESS_DWORD),
        X_GPE0_BLK=_io(pm.gpe0, pm.gpe0_length, ACCESS_BYTE),
    )
    return sdt.table(b"FACP", 3, bytes(body))


def facs() -> bytes:
    """The FACS, 64 bytes, which wants an address that is a multiple of 64."""
    return bytes(FacsTable(b"FACS", 64, Version=1))


def local_apic(cpu: int, flags: int) -> bytes:
    """The MADT's entry of CPU *cpu*, and what its _MAT gives (5.2.12.2, 6.2.10)."""
    return struct.pack("<BBBBI", 0, 8, cpu, cpu, flags)


def madt(platform: Platform, apic: MadtIoApic) -> bytes:
    """The interrupt controllers: a local APIC a vCPU, the IOAPIC, and what of ISA is not wired one to one.

    IRQ 0 is at pin 2. The SCI is level-triggered like that of a PC, but active high, the one polarity that KVM's
    interrupt controllers know. NMI is LINT1 of every local APIC.
    """
    body = struct.pack("<II", LAPIC_ADDRESS, PCAT_COMPAT)
    for cpu in range(platform.cpus):
        body += local_apic(cpu, LAPIC_ONLINE_CAPABLE if cpu in platform.absent_cpus else LAPIC_ENABLED)
    body += struct.pack("<BBBBII", 1, 12, apic.id, 0, apic.address, 0)
    sci = platform.pm.sci
    for irq, gsi, flags in ((0, 2, MPS_INTI_CONFORMS), (sci, sci, MPS_INTI_ACTIVE_HIGH_LEVEL)):
        body += struct.pack("<BBBBIH", 2, 10, 0, irq, gsi, flags)
    body += struct.pack("<BBBHB", 4, 6, ALL_PROCESSORS, MPS_INTI_CONFORMS, 1)
    return sdt.table(b"APIC", 1 if platform.cpu_hotplug is None else 5, body)


def mcfg(pci: PciRoot, base: int) -> bytes:
    """Where the configuration space of segment 0 is mapped."""
    return sdt.table(b"MCFG", 1, bytes(8) + struct.pack("<QHBBI", base, 0, 0, pci.last_bus, 0))


def _memory_affinity(memory: Window, flags: int) -> bytes:
    """In proximity domain 0 (5.2.16.2)."""
    return struct.pack("<BBIHQQIIQ", 1, 40, 0, 0, memory.first, memory.length, 0, flags, 0)


def srat(platform: Platform, memory: MemoryHotplugBlock) -> bytes:
    """One proximity domain with all processors and all memory: the addresses at which some may come are hot-pluggable,
    by which an OS knows how far they reach."""
    body = struct.pack("<IQ", SRAT_RESERVED, 0)
    if platform.apic is not None:
        for cpu in range(platform.cpus):
            body += struct.pack("<BBBBIB3sI", 0, 16, 0, cpu, AFFINITY_ENABLED, 0, bytes(3), 0)
    for window in memory.ram:
        body += _memory_affinity(window, AFFINITY_ENABLED)
    body += _memory_affinity(memory.window, AFFINITY_ENABLED | AFFINITY_HOT_PLUGGABLE)
    return sdt.table(b"SRAT", SRAT_REVISION, body)


def hpet(address: int) -> bytes:
    body = HpetBody(Event_Timer_Block_ID=HPET_EVENT_TIMER_BLOCK_ID, BASE_ADDRESS=Gas(SYSTEM_MEMORY, 64, 0, 0, address))
    return sdt.table(b"HPET", 1, bytes(body))
