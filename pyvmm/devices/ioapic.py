"""82093AA I/O APIC: 24 interrupt pins, each with an entry that says which processor gets which vector.

At 0xFEC00000:

    +0x00  IOREGSEL  which register IOWIN shows: 0 ID, 1 version, 2 arbitration ID, 0x10 + 2n and 0x11 + 2n entry n
    +0x10  IOWIN     that register, 32 bits
    +0x40  EOIR      (version 0x20) a vector: the end of a level-triggered interrupt, as if broadcast

Entry: 0-7 vector, 8-10 delivery mode, 11 destination mode (1 logical), 12 delivery status, 13 polarity (1 active low),
14 remote IRR, 15 trigger (1 level), 16 mask, 56-63 destination. 12 and 14 are read-only.

On a PC, pin n is IRQ n of the ISA bus, but for two: pin 0 is INTR of the 8259A (its entry says ExtINT), and IRQ 0, the
timer, is pin 2, which the MP table or MADT must say. PCI interrupts take 16-23.

Source: Intel 82093AA data sheet (290566); EOIR from the Intel 82801 (ICH9) data sheet, section 13.5. Polarity is kept
but not looked at: a line here is up when its device asks for service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.irq import LevelIrq
from pyvmm.trace import OFF, Channel

IOAPIC_PINS: Final = 24

IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
IOEOIR: Final = 0x40

IOAPIC_REG_ID: Final = 0
IOAPIC_REG_VERSION: Final = 1
IOAPIC_REG_ARB_ID: Final = 2
IOAPIC_REG_TABLE: Final = 0x10

RTE_VECTOR: Final = 0xFF
RTE_DELIVERY_SHIFT: Final = 8
RTE_DELIVERY_MODE: Final = 7
RTE_DEST_LOGICAL: Final = 1 << 11
RTE_DELIVERY_STATUS: Final = 1 << 12
RTE_POLARITY_LOW: Final = 1 << 13
RTE_REMOTE_IRR: Final = 1 << 14
RTE_LEVEL: Final = 1 << 15
RTE_MASKED: Final = 1 << 16
RTE_DEST_SHIFT: Final = 56
RTE_WRITABLE: Final = 0xFF00_0000_0001_AFFF

MSI_ADDRESS: Final = 0xFEE00000
MSI_ADDRESS_DEST_SHIFT: Final = 12
MSI_ADDRESS_LOGICAL: Final = 1 << 2
MSI_DATA_ASSERT: Final = 1 << 14
MSI_DATA_LEVEL: Final = 1 << 15

LEVEL_MODES: Final = (0, 1)
"""Fixed and lowest priority; SMI, NMI, INIT and ExtINT are edges whatever the trigger bit says (data sheet, 3.2.4)."""


def message(entry: int) -> tuple[int, int]:
    """The (address, data) of the MSI that a redirection entry amounts to (Intel SDM volume 3, "MSI")."""
    address = MSI_ADDRESS | (entry >> RTE_DEST_SHIFT & 0xFF) << MSI_ADDRESS_DEST_SHIFT
    if entry & RTE_DEST_LOGICAL:
        address |= MSI_ADDRESS_LOGICAL
    data = entry & (RTE_VECTOR | RTE_DELIVERY_MODE << RTE_DELIVERY_SHIFT)
    if is_level(entry):
        data |= MSI_DATA_LEVEL | MSI_DATA_ASSERT
    return address, data


def is_level(entry: int) -> bool:
    return entry & RTE_LEVEL != 0 and entry >> RTE_DELIVERY_SHIFT & RTE_DELIVERY_MODE in LEVEL_MODES


class IoApic:
    """The chip. *deliver* sends an MSI (address, data); an ExtINT entry comes as delivery mode 7, for which the
    processor asks the 8259A for the vector.

    *route*, if given, is told (pin, address, data, masked) of each entry that changes, before anything is delivered by
    it: KVM needs them as routes of its first 24 GSIs to know which EOIs to exit for (KVM_CAP_SPLIT_IRQCHIP).
    *ended*, if given, is called with a pin when its level-triggered interrupt ends; it may lower the line.
    """

    STATE = ("_up", "_lines", "_select", "_id", "_table")

    def __init__(
        self,
        deliver: Callable[[int, int], None],
        route: Callable[[int, int, int, bool], None] | None = None,
        ended: Callable[[int], None] | None = None,
        ioapic_id: int = 0,
        version: int = 0x20,
        trace: Channel = OFF,
    ) -> None:
        self._deliver = deliver
        self._route = route
        self._ended = ended
        self._first_id = ioapic_id & 0x0F
        self._version = version
        self._trace = trace
        self._up = 0  # the pins
        self._lines = tuple(self._make_line(pin) for pin in range(IOAPIC_PINS))
        self._select = 0
        self._id = self._first_id
        self._table = [RTE_MASKED] * IOAPIC_PINS

    def reset(self) -> None:
        """Power-up: every pin is masked."""
        self._select = 0
        self._id = self._first_id
        for pin in range(IOAPIC_PINS):
            self._set_entry(pin, RTE_MASKED)

    def restored(self) -> None:
        """After a load: the routes are those of the table."""
        if self._route is not None:
            for pin, entry in enumerate(self._table):
                self._route(pin, *message(entry), bool(entry & RTE_MASKED))

    def _make_line(self, pin: int) -> LevelIrq:
        def drive(level: bool) -> None:
            self._set_line(pin, level)

        return LevelIrq(drive)

    def line(self, pin: int) -> LevelIrq:
        """The input of *pin*, 0 to 23."""
        return self._lines[pin]

    def entry(self, pin: int) -> int:
        """The 64 bits of the redirection entry of *pin*."""
        return self._table[pin]

    def eoi(self, vector: int) -> None:
        """A local APIC ended the level-triggered *vector* (KVM_EXIT_IOAPIC_EOI). What is still up interrupts again."""
        for pin, entry in enumerate(self._table):
            if entry & RTE_REMOTE_IRR and entry & RTE_VECTOR == vector and entry & RTE_LEVEL:
                self._table[pin] = entry & ~RTE_REMOTE_IRR
                if self._trace.enabled:
                    self._trace(f"EOI: pin {pin}, vector {vector:#04x}")
                if self._ended is not None:
                    self._ended(pin)
                self._serve_level(pin)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if offset == IOREGSEL:
            return self._select
        if offset == IOWIN:
            return self._read_register() & ((1 << 8 * size) - 1)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._write_register(value & 0xFFFFFFFF)
        elif offset == IOEOIR and self._version >= 0x20:
            self.eoi(value & RTE_VECTOR)

    def _read_register(self) -> int:
        select = self._select
        pin = select - IOAPIC_REG_TABLE >> 1
        if 0 <= pin < IOAPIC_PINS:
            return self._table[pin] >> (32 if select & 1 else 0) & 0xFFFFFFFF
        if select in (IOAPIC_REG_ID, IOAPIC_REG_ARB_ID):
            return self._id << 24
        if select == IOAPIC_REG_VERSION:
            return (IOAPIC_PINS - 1) << 16 | self._version
        return 0

    def _write_register(self, value: int) -> None:
        select = self._select
        pin = select - IOAPIC_REG_TABLE >> 1
        if 0 <= pin < IOAPIC_PINS:
            half = 32 if select & 1 else 0
            writable = RTE_WRITABLE & 0xFFFFFFFF << half
            self._set_entry(pin, self._table[pin] & ~writable | value << half & writable)
        elif select == IOAPIC_REG_ID:
            self._id = value >> 24 & 0x0F

    def _set_entry(self, pin: int, entry: int) -> None:
        # Linux ends a level-triggered interrupt at versions below 0x20 by making its pin edge-triggered for a moment.
        if not entry & RTE_LEVEL:
            entry &= ~RTE_REMOTE_IRR
        old = self._table[pin]
        if entry == old:
            return
        self._table[pin] = entry
        if self._trace.enabled:
            self._trace(f"pin {pin}: {describe(entry)}")
        if self._route is not None:
            self._route(pin, *message(entry), bool(entry & RTE_MASKED))
        self._serve_level(pin)

    # Delivery

    def _set_line(self, pin: int, level: bool) -> None:
        bit = 1 << pin
        if not level:
            self._up &= ~bit
            return
        self._up |= bit
        entry = self._table[pin]
        if is_level(entry):
            self._serve_level(pin)
        elif not entry & RTE_MASKED:  # an edge at a masked pin is lost (data sheet, 3.2.4)
            self._send(pin, entry)

    def _serve_level(self, pin: int) -> None:
        entry = self._table[pin]
        if self._up >> pin & 1 and is_level(entry) and not entry & (RTE_MASKED | RTE_REMOTE_IRR):
            self._table[pin] = entry | RTE_REMOTE_IRR
            self._send(pin, entry)

    def _send(self, pin: int, entry: int) -> None:
        address, data = message(entry)
        if self._trace.enabled:
            self._trace(f"pin {pin}: MSI {address:#x} {data:#06x}", ("irq", pin, 1))
        self._deliver(address, data)


def describe(entry: int) -> str:
    """One line for a trace."""
    mode = ("fixed", "lowest", "SMI", "reserved", "NMI", "INIT", "reserved", "ExtINT")[entry >> RTE_DELIVERY_SHIFT & 7]
    return (
        f"vector {entry & RTE_VECTOR:#04x} {mode} {'level' if entry & RTE_LEVEL else 'edge'} to "
        f"{'logical' if entry & RTE_DEST_LOGICAL else 'physical'} {entry >> RTE_DEST_SHIFT:#x}"
        f"{', masked' if entry & RTE_MASKED else ''}"
    )
