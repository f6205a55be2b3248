"""What the ACPI and MP tables of a board have to say: its placements in the tables' terms."""

from __future__ import annotations

from typing import Final, NamedTuple

from pyvmm.acpi.platform import (
    COM_PORT,
    KEYBOARD,
    MOUSE,
    RTC,
    CpuHotplugBlock,
    HotplugBlock,
    IsaDevice,
    MadtIoApic,
    MemoryHotplugBlock,
    PciRoot,
    Platform,
    PowerManagement,
    Window,
)
from pyvmm.board import layout, sockets
from pyvmm.board.memslots import pci_memory64, plug_window, ram_end
from pyvmm.board.placement import Parts
from pyvmm.board.sockets import CpuSockets
from pyvmm.devices import acpi_pm
from pyvmm.devices.cpu_hotplug import GPE_CPU_HOTPLUG
from pyvmm.devices.memory_hotplug import GPE_MEMORY_HOTPLUG
from pyvmm.devices.pci_hotplug import GPE_PCI_HOTPLUG
from pyvmm.devices.reset_control import RCR_RST_CPU, RCR_SYS_RST
from pyvmm.pci.host import CONFIG_ADDRESS, RST_CNT


class _Isa(NamedTuple):
    """How ACPI names a part: its device's name and _HID; *more* are the parts whose ports and interrupts go with it."""

    part: str
    name: str
    hid: str
    sta: bool = False
    align: int = 1
    uid: int | None = None
    more: tuple[str, ...] = ()
    wake_gpe: int | None = None


_ISA: Final = (
    _Isa("i8259", "PIC", "PNP0000"),
    _Isa("i8254", "TIMR", "PNP0100"),
    _Isa("port61", "SPKR", "PNP0800"),
    _Isa("rtc", "RTC", RTC, sta=True),
    _Isa("ps2-keyboard", "PS2K", KEYBOARD, sta=True, more=("i8042",), wake_gpe=acpi_pm.GPE_KEYBOARD),
    _Isa("ps2-mouse", "PS2M", MOUSE, sta=True),
    _Isa("com1", "COM1", COM_PORT, sta=True, align=8, uid=1),
    _Isa("fw_cfg", "FWCF", "QEMU0002", sta=True),
)
"""The parts of a board that an OS finds behind the ISA bridge, in the order of the namespace."""


def isa_devices(parts: Parts) -> tuple[IsaDevice, ...]:
    """What of *parts* is behind the ISA bridge, each where it was placed."""
    return tuple(
        IsaDevice(
            isa.name,
            isa.hid,
            tuple(port for name in (isa.part, *isa.more) if name in parts for port in parts[name].ports),
            parts[isa.part].irqs,
            isa.align,
            isa.sta,
            isa.uid,
            isa.wake_gpe,
        )
        for isa in _ISA
        if isa.part in parts
    )


def describe(
    parts: Parts,
    cpus: CpuSockets,
    memory: int,
    phys_bits: int,
    last_bus: int,
    hotplug_slots: tuple[int, ...],
    memory_slots: int = 0,
    max_memory: int | None = None,
    *,
    seabios: bool = False,
) -> Platform:
    """The platform that *parts* make with those processors, so many bytes of RAM, physical addresses of *phys_bits*
    bits and PCI buses up to *last_bus*; in *hotplug_slots* of bus 0 devices come and go, in *memory_slots* RAM, up to
    *max_memory* bytes of it. SeaBIOS puts BARs elsewhere than this board does.

    An OS looks at each bus that the tables name and no bridge leads to: 32 devices, one or two exits each.
    """
    pm, apm = parts["acpi-pm"].ports
    base, length = pm
    ecam, ecam_length = parts["pci"].memory[0]
    hotplug, hotplug_length = parts["pci-hotplug"].ports[0]
    return Platform(
        cpus=cpus.possible,
        cpu_hotplug=_cpu_hotplug(parts),
        absent_cpus=frozenset(range(cpus.possible)) - frozenset(cpus.present),
        pm=PowerManagement(
            io=Window(base, base + length - 1),
            pm1a_event=base + acpi_pm.PM1_STS,
            pm1a_control=base + acpi_pm.PM1_CNT,
            timer=base + acpi_pm.PM_TMR,
            gpe0=base + acpi_pm.GPE0_STS,
            gpe0_length=acpi_pm.GPE0_LENGTH,
            smi_command=apm[0],
            acpi_enable=acpi_pm.ACPI_ENABLE,
            acpi_disable=acpi_pm.ACPI_DISABLE,
            s5=acpi_pm.SLP_TYP_S5,
            s3=acpi_pm.SLP_TYP_S3,
            power_button_gpe=acpi_pm.GPE_POWER_BUTTON,
            reset_port=parts["pci"].ports[0][0] + RST_CNT - CONFIG_ADDRESS,
            reset_value=RCR_SYS_RST | RCR_RST_CPU,
            sci=parts["acpi-pm"].irqs[0],
        ),
        apic=MadtIoApic(parts["ioapic"].memory[0][0]) if "ioapic" in parts else None,
        isa=isa_devices(parts),
        vga="vga" in parts,
        pci=PciRoot(
            memory32=Window(layout.PCI_MMIO_START, layout.PCI_MMIO_END - 1),
            more_memory32=Window(layout.PCI_MMIO_HIGH_START, layout.PCI_MMIO_HIGH_END - 1) if seabios else None,
            memory64=memory64(memory, phys_bits, max_memory),
            ecam=ecam,
            ecam_length=ecam_length,
            last_bus=last_bus,
            gsis=layout.PCI_GSIS,
            irqs=layout.PCI_IRQS,
            hotplug=HotplugBlock(Window(hotplug, hotplug + hotplug_length - 1), GPE_PCI_HOTPLUG, hotplug_slots),
        ),
        memory=memory_block(parts, memory, memory_slots, max_memory),
    )


def _cpu_hotplug(parts: Parts) -> CpuHotplugBlock | None:
    if sockets.PART not in parts:
        return None
    first, length = parts[sockets.PART].ports[0]
    return CpuHotplugBlock(Window(first, first + length - 1), GPE_CPU_HOTPLUG)


def memory_block(parts: Parts, memory: int, slots: int, most: int | None) -> MemoryHotplugBlock | None:
    """What *slots* for memory are, where there are some, in a machine of *memory* bytes, later *most*."""
    if not slots or most is None:
        return None
    first, length = parts["memory-hotplug"].ports[0]
    ram = [Window(0, min(memory, layout.HOLE_START) - 1)]
    if memory > layout.HOLE_START:
        ram.append(Window(layout.HOLE_END, ram_end(memory) - 1))
    start, end = plug_window(memory, most)
    return MemoryHotplugBlock(
        Window(first, first + length - 1), GPE_MEMORY_HOTPLUG, slots, tuple(ram), Window(start, end - 1)
    )


def memory64(memory: int, phys_bits: int, most: int | None = None) -> Window | None:
    """See memslots.pci_memory64()."""
    span = pci_memory64(memory, phys_bits, most)
    return None if span is None else Window(span[0], span[1] - 1)
