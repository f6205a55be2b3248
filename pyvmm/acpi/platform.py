"""What the ACPI tables say of the machine: filled in by the board from what it has really put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

MAX_CPUS: Final = 255
"""APIC IDs 0 to 254; 255 is the broadcast (Intel SDM, volume 3, 11.6.2.1)."""

PRESENT: Final = 0x0F
"""_STA: present, enabled, shown, working (ACPI 6.5, 6.3.7)."""

PCI_DEVICES: Final = 32
PCI_PINS: Final = 4


@dataclass(frozen=True)
class Window:
    """A range of addresses, *last* included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ValueError(f"not an address range: {self.first:#x}-{self.last:#x}")

    @property
    def length(self) -> int:
        return self.last - self.first + 1


class PowerManagement(NamedTuple):
    """Where the fixed ACPI hardware is, in I/O ports, and what to write there (ACPI 6.5, 4.8)."""

    io: Window
    """The whole register block, for the guest to keep clear of."""
    pm1a_event: int
    """PM1 status and enable, 4 bytes."""
    pm1a_control: int
    """PM1 control, 2 bytes."""
    timer: int
    """The 32-bit PM timer."""
    gpe0: int
    """GPE0 status, then enable."""
    gpe0_length: int
    """Bytes of both halves: 8 general-purpose events for each 2 bytes."""
    smi_command: int
    """The port, one byte, that takes the next two values."""
    acpi_enable: int
    acpi_disable: int
    s5: int
    """SLP_TYP of soft off."""
    s3: int
    """SLP_TYP of suspend to RAM."""
    power_button_gpe: int
    """The general-purpose event of the power button."""
    reset_port: int
    """A byte-wide I/O port that resets the machine when it is written ..."""
    reset_value: int
    """... with this."""
    sci: int = 9
    """The system control interrupt, an ISA IRQ; active high and level-triggered, at the PIC and the IOAPIC."""


@dataclass(frozen=True)
class MadtIoApic:
    """The IOAPIC, whose pins are GSI 0 and up. IRQ 0 is wired to pin 2, as in every PC."""

    address: int = 0xFEC00000
    id: int = 0


KEYBOARD: Final = "PNP0303"
MOUSE: Final = "PNP0F13"
RTC: Final = "PNP0B00"
COM_PORT: Final = "PNP0501"
"""_HIDs whose devices the fixed tables tell of too, or that have numbers."""


class IsaDevice(NamedTuple):
    """A device at fixed ports behind the ISA bridge."""

    name: str
    """Four characters, as the namespace has them."""
    hid: str
    """Its Plug and Play ID, such as PNP0303, or ACPI ID, such as QEMU0002."""
    ports: tuple[tuple[int, int], ...] = ()
    """(first port, how many)."""
    irqs: tuple[int, ...] = ()
    align: int = 1
    """Of its ports, were they to move."""
    sta: bool = False
    """It says that it is there (_STA); without, an OS takes that for granted."""
    uid: int | None = None
    wake_gpe: int | None = None
    """The general-purpose event by which it wakes the machine from S3."""


class HotplugBlock(NamedTuple):
    """The registers of PCI hot-plug, as QEMU has them (docs/specs/acpi_pci_hotplug): dwords, a bit a slot, and one of
    the slots that have a device behind them."""

    io: Window
    gpe: int
    """The general-purpose event that says: look at the registers."""
    slots: tuple[int, ...]
    """Of bus 0, where devices come and go."""


class CpuHotplugBlock(NamedTuple):
    """The registers of CPU hot-plug, as QEMU has them (docs/specs/acpi_cpu_hotplug)."""

    io: Window
    gpe: int
    """The general-purpose event that says: look at the registers."""


class MemoryHotplugBlock(NamedTuple):
    """The registers of memory hot-plug, as QEMU has them (docs/specs/acpi_mem_hotplug), and where memory is and may
    come."""

    io: Window
    gpe: int
    """The general-purpose event that says: look at each slot."""
    slots: int
    ram: tuple[Window, ...]
    """What is there from the start."""
    window: Window
    """Where memory comes and goes."""


@dataclass(frozen=True)
class PciRoot:
    """The host bridge of PCI segment 0 and what it forwards.

    Pin INTA–INTD (0–3) of device d on bus 0 drives PIRQ (d + pin) mod 4, the swizzle that bridges use as well
    (PCI-to-PCI Bridge Architecture 1.2, 9.1); PIRQ p reaches the IOAPIC as GSI gsis[p] and the PIC as IRQ irqs[p],
    level-triggered.
    """

    memory32: Window
    """Below 4 GiB."""
    memory64: Window | None = None
    """Above 4 GiB."""
    ecam: int | None = 0xE0000000
    """Base of the memory-mapped configuration space of buses 0 to last_bus, 1 MiB a bus; None where there is none."""
    last_bus: int = 255
    """The last bus that there is or may come."""
    gsis: tuple[int, int, int, int] = (16, 17, 18, 19)
    irqs: tuple[int, int, int, int] = (10, 11, 5, 14)
    ecam_length: int = 256 << 20
    """Bytes at *ecam* that nothing else has: Linux 2.6 takes the base from MCFG and looks at 256 buses."""
    hotplug: HotplugBlock | None = None
    more_memory32: Window | None = None
    """Below 4 GiB too, where firmware puts BARs."""

    @property
    def windows32(self) -> tuple[Window, ...]:
        """Those of memory below 4 GiB."""
        return (self.memory32,) if self.more_memory32 is None else (self.memory32, self.more_memory32)

    def __post_init__(self) -> None:
        if any(window.last >= 1 << 32 for window in self.windows32):
            raise ValueError("the 32-bit PCI window ends above 4 GiB")
        if not 0 <= self.last_bus <= 255:
            raise ValueError(f"no PCI bus {self.last_bus}")
        if self.ecam is not None and (self.ecam & 0xFFFFF or self.ecam + self.ecam_length > 1 << 32):
            raise ValueError(f"an ECAM at {self.ecam:#x} is not aligned to 1 MiB, or ends above 4 GiB")
        if self.ecam is not None and self.ecam_length < (self.last_bus + 1) << 20:
            raise ValueError(f"an ECAM of {self.ecam_length:#x} bytes has no room for bus {self.last_bus}")


@dataclass(frozen=True)
class Platform:
    """The machine."""

    cpus: int
    """How many there may be; vCPU n has APIC ID n."""
    pm: PowerManagement
    apic: MadtIoApic | None = MadtIoApic()
    """None for a machine with PIC only, whose CPUs show no local APIC."""
    pci: PciRoot | None = None
    isa: tuple[IsaDevice, ...] = ()
    """What is behind the ISA bridge, in the order of the namespace."""
    vga: bool = True
    """VGA at 0xA0000–0xBFFFF."""
    hpet: int | None = None
    """Base of the HPET."""
    cpu_hotplug: CpuHotplugBlock | None = None
    """Where CPUs come and go."""
    absent_cpus: frozenset[int] = frozenset()
    """Those that are not there now, but may come."""
    memory: MemoryHotplugBlock | None = None
    """None where no memory comes and goes."""

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ValueError(f"ACPI tables for {self.cpus} CPUs; 1 to {MAX_CPUS} are possible")
        if self.absent_cpus and (self.cpu_hotplug is None or not self.absent_cpus <= set(range(1, self.cpus))):
            raise ValueError(f"CPUs that are not there, and cannot come: {sorted(self.absent_cpus)}")
        if self.has(MOUSE) and not self.has(KEYBOARD):
            raise ValueError("the mouse is at the i8042, which comes with the keyboard")
        names = [device.name for device in self.isa]
        if len(set(names)) != len(names) or not all(len(name.ljust(4, "_")) == 4 for name in names):
            raise ValueError(f"names of ISA devices: {names}")

    def has(self, hid: str) -> bool:
        """Whether there is a device with that _HID."""
        return any(device.hid == hid for device in self.isa)
