"""The AML of PCI hot-plug: a device for each slot of bus 0 whose function comes and goes, and the event that says so.

An OS is told by Notify: 1, look whether a device has come; 3, let go of it and call _EJ0 (ACPI 6.5, 5.6.6 and 6.3.3).
The method's register of what has come is cleared as it is read, so that whoever is late misses nothing.
"""

from __future__ import annotations

from typing import Final

from pyvmm.acpi.aml import (
    Aml,
    And,
    Arg0,
    Arg1,
    Call,
    Device,
    DWordAcc,
    Field,
    FieldUnit,
    If,
    Method,
    Name,
    NoLock,
    Notify,
    NotSerialized,
    OperationRegion,
    Ref,
    Return,
    Scope,
    Serialized,
    Store,
    SystemIO,
    WriteAsZeros,
)
from pyvmm.acpi.platform import PRESENT, HotplugBlock

NOTIFY_DEVICE_CHECK: Final = 1
NOTIFY_EJECT_REQUEST: Final = 3

D0: Final = 0
D3HOT: Final = 3
"""Of _PSC (7.3.6)."""


def _name(slot: int) -> str:
    return f"S{slot:02X}_"


def _slot(slot: int) -> Aml:
    return Device(
        _name(slot),
        Name("_ADR", slot << 16),
        Name("_SUN", slot),
        Method("_STA", 0, NotSerialized, If(And(Ref("PPRS"), 1 << slot), Return(PRESENT)), Return(0)),
        Method("_EJ0", 1, NotSerialized, Store(1 << slot, "PEJC")),
        Method("_PSC", 0, NotSerialized, If(And(Ref("PPD3"), 1 << slot), Return(D3HOT)), Return(D0)),
        Method("_PS0", 0, NotSerialized, Store(1 << slot, "PPD0")),
        Method("_PS3", 0, NotSerialized, Store(1 << slot, "PPD3")),
    )


def slots(block: HotplugBlock) -> tuple[Aml, ...]:
    """What goes into the host bridge's device."""
    notices = (If(And(Arg0, 1 << slot), Notify(_name(slot), Arg1)) for slot in block.slots)
    return (
        OperationRegion("PHPR", SystemIO, block.io.first, block.io.length),
        Field(
            "PHPR",
            DWordAcc,
            NoLock,
            WriteAsZeros,
            *(FieldUnit(name, 32) for name in ("PCUP", "PDWN", "PEJC", "PRMV", "PSEL", "PPRS", "PPD0", "PPD3")),
        ),
        *map(_slot, block.slots),
        Method("PNTF", 2, NotSerialized, *notices),
        Method(
            "PSCN",
            0,
            Serialized,
            Call("PNTF", Ref("PCUP"), NOTIFY_DEVICE_CHECK),
            Call("PNTF", Ref("PDWN"), NOTIFY_EJECT_REQUEST),
        ),
    )


def event(block: HotplugBlock) -> Aml:
    """The general-purpose event; an edge, whose status bit is cleared before the method runs."""
    return Scope("\\_GPE", Method(f"_E{block.gpe:02X}", 0, NotSerialized, Call("\\_SB.PCI0.PSCN")))
