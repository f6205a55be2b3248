"""The AML of each device of the board, a function a device, and the two definition blocks that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyvmm.acpi import hotplug, memory_hotplug
from pyvmm.acpi.aml import (
    EISAID,
    Aml,
    And,
    Arg0,
    Arg1,
    Arg3,
    CreateDWordField,
    DefinitionBlock,
    Device,
    Else,
    If,
    LEqual,
    LNotEqual,
    Local0,
    Method,
    Name,
    Notify,
    NotSerialized,
    Or,
    Package,
    Ref,
    Return,
    Scope,
    Serialized,
    Store,
    ToUUID,
)
from pyvmm.acpi.platform import (
    PCI_DEVICES,
    PCI_PINS,
    PRESENT,
    CpuHotplugBlock,
    HotplugBlock,
    IsaDevice,
    MemoryHotplugBlock,
    PciRoot,
    Platform,
    PowerManagement,
    Window,
)
from pyvmm.acpi.processors import processors
from pyvmm.acpi.resources import (
    IO,
    Cacheable,
    Decode16,
    DWordMemory,
    EntireRange,
    IRQNoFlags,
    MaxFixed,
    Memory32Fixed,
    MinFixed,
    NonCacheable,
    PosDecode,
    QWordMemory,
    ReadOnly,
    ReadWrite,
    Resource,
    ResourceProducer,
    ResourceTemplate,
    WordBusNumber,
    WordIO,
)
from pyvmm.irq import swizzle

OEM: Final = "PYVMM"
DSDT_REVISION: Final = 2
"""Integers of 64 bits; 1 would make them 32 bits wide (ACPI 6.5, 19.6.29)."""

PCI_CONFIG_PORTS: Final = Window(0xCF8, 0xCFF)
LAST_PORT: Final = 0xFFFF
VGA_MEMORY: Final = Window(0xA0000, 0xBFFFF)

OSC_PCI: Final = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
OSC_PCI_CONTROL: Final = 0x1F
"""What an OS may take over: native and SHPC hot-plug, PME, AER, the PCIe capability (PCI Firmware 3.3, 4.5.1)."""
OSC_UNRECOGNIZED_UUID: Final = 0x04
OSC_UNRECOGNIZED_REVISION: Final = 0x08
OSC_CAPABILITIES_MASKED: Final = 0x10

NOTIFY_POWER_BUTTON: Final = 0x80
NOTIFY_DEVICE_WAKE: Final = 2
DEEPEST_WAKEABLE: Final = 3
"""S3 (7.3.13, _PRW)."""


def isa_device(device: IsaDevice) -> Aml:
    """A device at fixed ports."""
    ports = [IO(Decode16, first, first, device.align, count) for first, count in device.ports]
    # An ID of seven characters is a PNP ID, which is packed into an integer; one of eight an ACPI ID (6.1.5).
    body = [Name("_HID", EISAID(device.hid) if len(device.hid) == 7 else device.hid)]
    if device.uid is not None:
        body.append(Name("_UID", device.uid))
    if device.sta:
        body.append(Name("_STA", PRESENT))
    if device.wake_gpe is not None:
        body.append(Name("_PRW", Package(device.wake_gpe, DEEPEST_WAKEABLE)))
    return Device(device.name, *body, Name("_CRS", ResourceTemplate(*ports, *map(IRQNoFlags, device.irqs))))


def hpet(address: int) -> Aml:
    return Device(
        "HPET",
        Name("_HID", EISAID("PNP0103")),
        Name("_UID", 0),
        Name("_CRS", ResourceTemplate(Memory32Fixed(ReadOnly, address, 0x400))),
    )


def ioapic(address: int) -> Aml:
    return Device(
        "APIC",
        Name("_HID", EISAID("PNP0003")),
        Name("_UID", 0),
        Name("_CRS", ResourceTemplate(Memory32Fixed(ReadWrite, address, 0x1000))),
    )


def motherboard(pm: PowerManagement, *blocks: HotplugBlock | CpuHotplugBlock | MemoryHotplugBlock | None) -> Aml:
    """The ports of the fixed ACPI hardware and of hot-plug, so that no PCI BAR is put over them."""
    windows = [block.io for block in blocks if block is not None]
    more = [IO(Decode16, window.first, window.first, 1, window.length) for window in windows]
    return Device(
        "MBRD",
        Name("_HID", EISAID("PNP0C02")),
        Name("_UID", 0),
        Name(
            "_CRS",
            ResourceTemplate(
                IO(Decode16, pm.io.first, pm.io.first, 1, pm.io.length),
                IO(Decode16, pm.smi_command, pm.smi_command, 1, 2),
                *more,
            ),
        ),
    )


def ecam(base: int, length: int) -> Aml:
    """The memory-mapped configuration space: Linux believes MCFG only where a PNP0C02 or the E820 map reserves it."""
    return Device(
        "ECAM",
        Name("_HID", EISAID("PNP0C02")),
        Name("_UID", 1),
        Name("_CRS", ResourceTemplate(Memory32Fixed(ReadWrite, base, length))),
    )


def _pci_windows(pci: PciRoot, vga: bool) -> Iterator[Resource]:
    yield WordBusNumber(ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, pci.last_bus, 0, pci.last_bus + 1)
    config = PCI_CONFIG_PORTS
    yield IO(Decode16, config.first, config.first, 1, config.length)
    for ports in (Window(0, config.first - 1), Window(config.last + 1, LAST_PORT)):
        yield WordIO(
            ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, ports.first, ports.last, 0, ports.length
        )
    for memory in (VGA_MEMORY, *pci.windows32) if vga else pci.windows32:
        yield DWordMemory(
            ResourceProducer,
            PosDecode,
            MinFixed,
            MaxFixed,
            Cacheable if memory is VGA_MEMORY else NonCacheable,
            ReadWrite,
            0,
            memory.first,
            memory.last,
            0,
            memory.length,
        )
    if pci.memory64 is not None:
        memory = pci.memory64
        yield QWordMemory(
            ResourceProducer,
            PosDecode,
            MinFixed,
            MaxFixed,
            Cacheable,
            ReadWrite,
            0,
            memory.first,
            memory.last,
            0,
            memory.length,
        )


def _prt(interrupts: tuple[int, int, int, int]) -> Aml:
    """A routing package in which PIRQ p is hard-wired to interrupts[p]: no link device to program (6.2.13)."""
    return Package(
        *(
            Package(device << 16 | 0xFFFF, pin, 0, interrupts[swizzle(device, pin)])
            for device in range(PCI_DEVICES)
            for pin in range(PCI_PINS)
        )
    )


def _pci_osc() -> Aml:
    """_OSC: the OS gets all that it asks for of OSC_PCI_CONTROL, as no firmware wants to keep any of it (6.2.11)."""
    return Method(
        "_OSC",
        4,
        Serialized,
        CreateDWordField(Arg3, 0, "CDW1"),
        If(
            LEqual(Arg0, ToUUID(OSC_PCI)),
            CreateDWordField(Arg3, 8, "CDW3"),
            And(Ref("CDW3"), OSC_PCI_CONTROL, Local0),
            If(LNotEqual(Arg1, 1), Or(Ref("CDW1"), OSC_UNRECOGNIZED_REVISION, "CDW1")),
            If(LNotEqual(Ref("CDW3"), Local0), Or(Ref("CDW1"), OSC_CAPABILITIES_MASKED, "CDW1")),
            Store(Local0, "CDW3"),
        ),
        Else(Or(Ref("CDW1"), OSC_UNRECOGNIZED_UUID, "CDW1")),
        Return(Arg3),
    )


def pci0(platform: Platform, pci: PciRoot, *children: Aml) -> Aml:
    """The host bridge, with the ISA devices behind it. PICF, which _PIC sets, is 0 while the OS uses the PIC."""
    express = pci.ecam is not None
    body = [
        Name("_HID", EISAID("PNP0A08" if express else "PNP0A03")),
        *([Name("_CID", EISAID("PNP0A03"))] if express else []),
        Name("_UID", 0),
        Name("_SEG", 0),
        Name("_BBN", 0),
        Name("_CRS", ResourceTemplate(*_pci_windows(pci, platform.vga))),
        Name("PRTP", _prt(pci.irqs)),
    ]
    if platform.apic is None:
        body.append(Method("_PRT", 0, NotSerialized, Return(Ref("PRTP"))))
    else:
        body.append(Name("PRTA", _prt(pci.gsis)))
        body.append(Method("_PRT", 0, NotSerialized, If(Ref("PICF"), Return(Ref("PRTA"))), Else(Return(Ref("PRTP")))))
    if express:
        body.append(_pci_osc())
    return Device("PCI0", *body, *children)


def pwrb() -> Aml:
    """The power button, as a control method: its general-purpose event notifies it (4.8.2.2.1.2)."""
    return Device("PWRB", Name("_HID", EISAID("PNP0C0C")))


def power_button_event(gpe: int) -> Aml:
    """The event is an edge, so the status bit is cleared before the method runs and a second press is not lost."""
    return Scope("\\_GPE", Method(f"_E{gpe:02X}", 0, NotSerialized, Notify("\\_SB.PWRB", NOTIFY_POWER_BUTTON)))


def wake_event(gpe: int, path: str) -> Aml:
    """What the device *path* has woken the machine by."""
    return Scope("\\_GPE", Method(f"_E{gpe:02X}", 0, NotSerialized, Notify(path, NOTIFY_DEVICE_WAKE)))


def dsdt(platform: Platform) -> bytes:
    """The differentiated system description table: the board."""
    isa = [isa_device(device) for device in platform.isa]
    block = platform.pci.hotplug if platform.pci is not None else None
    memory = platform.memory
    board = [motherboard(platform.pm, block, platform.cpu_hotplug, memory), pwrb()]
    if platform.apic is not None:
        board.append(ioapic(platform.apic.address))
    if platform.hpet is not None:
        board.append(hpet(platform.hpet))
    if platform.pci is None:
        board += isa
    else:
        if platform.pci.ecam is not None:
            board.append(ecam(platform.pci.ecam, platform.pci.ecam_length))
        board.append(pci0(platform, platform.pci, *isa, *(hotplug.slots(block) if block is not None else ())))
    events = [power_button_event(platform.pm.power_button_gpe)]
    parent = "\\_SB" if platform.pci is None else "\\_SB.PCI0"
    for device in platform.isa:
        if device.wake_gpe is not None:
            events.append(wake_event(device.wake_gpe, f"{parent}.{device.name}"))
    if block is not None:
        events.append(hotplug.event(block))
    if memory is not None:
        board += memory_hotplug.slots(memory)
        events.append(memory_hotplug.event(memory))
    return DefinitionBlock(
        "DSDT",
        DSDT_REVISION,
        OEM,
        "PYVMDSDT",
        1,
        Name("PICF", 0),
        Method("_PIC", 1, NotSerialized, Store(Arg0, "PICF")),
        Name("_S3", Package(platform.pm.s3, 0, 0, 0)),
        Name("_S5", Package(platform.pm.s5, 0, 0, 0)),
        Scope("\\_SB", *board),
        *events,
    )


def ssdt(platform: Platform) -> bytes:
    """A secondary table: the processors."""
    return DefinitionBlock("SSDT", DSDT_REVISION, OEM, "PYVMSSDT", 1, *processors(platform))
