"""The AML of memory hot-plug: a device for each slot, and the event that says that something came or is to go.

An OS is told by Notify: 1, look whether there is memory; 3, let go of it and call _EJ0 (ACPI 6.5, 5.6.6, 6.3.3 and
9.11). The registers are those of whichever slot is selected, so that methods that use them hold a mutex.
"""

from __future__ import annotations

from typing import Final

from pyvmm.acpi.aml import (
    EISAID,
    Acquire,
    Add,
    Aml,
    Arg0,
    Arg1,
    Arg2,
    ByteAcc,
    Call,
    CreateQWordField,
    Device,
    DWordAcc,
    Field,
    FieldUnit,
    If,
    LEqual,
    Local0,
    Local1,
    Local2,
    Method,
    Mutex,
    Name,
    NoLock,
    Notify,
    NotSerialized,
    Offset,
    OperationRegion,
    Or,
    Ref,
    Release,
    Return,
    Scope,
    Serialized,
    ShiftLeft,
    Store,
    Subtract,
    SystemIO,
    WriteAsZeros,
)
from pyvmm.acpi.platform import PRESENT, MemoryHotplugBlock
from pyvmm.acpi.resources import (
    Cacheable,
    MaxFixed,
    MinFixed,
    PosDecode,
    QWordMemory,
    ReadWrite,
    ResourceProducer,
    ResourceTemplate,
)

NOTIFY_DEVICE_CHECK: Final = 1
NOTIFY_EJECT_REQUEST: Final = 3

QWORD_MINIMUM: Final = 14
QWORD_MAXIMUM: Final = 22
QWORD_LENGTH: Final = 38
"""Bytes of a QWORD address space descriptor before these fields (6.4.3.5.1)."""


def _name(slot: int) -> str:
    return f"MP{slot:02X}"


def _registers(block: MemoryHotplugBlock) -> tuple[Aml, ...]:
    def dwords(*names: str) -> Aml:
        return Field("MHPR", DWordAcc, NoLock, WriteAsZeros, *(FieldUnit(name, 32) for name in names))

    return (
        OperationRegion("MHPR", SystemIO, block.io.first, block.io.length),
        dwords("MRBL", "MRBH", "MRLL", "MRLH"),
        dwords("MSEL", "MOEV", "MOSC"),
        Field(
            "MHPR",
            ByteAcc,
            NoLock,
            WriteAsZeros,
            Offset(0x14),
            *(FieldUnit(name, 1) for name in ("MENA", "MINS", "MRMV", "MEJC")),
        ),
        Mutex("MLCK", 0),
    )


def _select(slot: Aml) -> tuple[Aml, Aml]:
    return Acquire("MLCK"), Store(slot, "MSEL")


def _status() -> Aml:
    """_STA of slot Arg0."""
    return Method(
        "MSTA",
        1,
        Serialized,
        Store(0, Local0),
        *_select(Arg0),
        If(Ref("MENA"), Store(PRESENT, Local0)),
        Release("MLCK"),
        Return(Local0),
    )


def _resources() -> Aml:
    """_CRS of slot Arg0, of which nothing is left as it is in the template."""
    template = ResourceTemplate(
        QWordMemory(ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite, 0, 0, 0xFFF, 0, 0x1000)
    )
    return Method(
        "MCRS",
        1,
        Serialized,
        Store(template, Local0),
        CreateQWordField(Local0, QWORD_MINIMUM, "MMIN"),
        CreateQWordField(Local0, QWORD_MAXIMUM, "MMAX"),
        CreateQWordField(Local0, QWORD_LENGTH, "MLEN"),
        *_select(Arg0),
        Or(ShiftLeft(Ref("MRBH"), 32), Ref("MRBL"), Local1),
        Or(ShiftLeft(Ref("MRLH"), 32), Ref("MRLL"), Local2),
        Release("MLCK"),
        Store(Local1, "MMIN"),
        Store(Local2, "MLEN"),
        Store(0, "MMAX"),
        If(Local2, Subtract(Add(Local1, Local2), 1, "MMAX")),
        Return(Local0),
    )


def _tell() -> Aml:
    """_OST of slot Arg0: event Arg1 went as status Arg2 says."""
    return Method("MOST", 3, Serialized, *_select(Arg0), Store(Arg1, "MOEV"), Store(Arg2, "MOSC"), Release("MLCK"))


def _eject() -> Aml:
    return Method("MEJE", 1, Serialized, *_select(Arg0), Store(1, "MEJC"), Release("MLCK"))


def _slot(slot: int) -> Aml:
    return Device(
        _name(slot),
        Name("_HID", EISAID("PNP0C80")),
        Name("_UID", slot),
        Method("_STA", 0, NotSerialized, Return(Call("MSTA", slot))),
        Method("_CRS", 0, Serialized, Return(Call("MCRS", slot))),
        Method("_EJ0", 1, NotSerialized, Call("MEJE", slot)),
        Method("_OST", 3, NotSerialized, Call("MOST", slot, Arg0, Arg1)),
    )


def _scan(slots: int) -> Aml:
    """What is new of each slot, said to its device, and with that taken notice of. One event may stand for both."""
    looks: list[Aml] = []
    for slot in range(slots):
        looks += [
            Store(slot, "MSEL"),
            If(LEqual(Ref("MINS"), 1), Notify(_name(slot), NOTIFY_DEVICE_CHECK), Store(1, "MINS")),
            If(LEqual(Ref("MRMV"), 1), Notify(_name(slot), NOTIFY_EJECT_REQUEST), Store(1, "MRMV")),
        ]
    return Method("MSCN", 0, Serialized, Acquire("MLCK"), *looks, Release("MLCK"))


def slots(block: MemoryHotplugBlock) -> tuple[Aml, ...]:
    """What goes into \\_SB."""
    return (
        *_registers(block),
        _status(),
        _resources(),
        _tell(),
        _eject(),
        *map(_slot, range(block.slots)),
        _scan(block.slots),
    )


def event(block: MemoryHotplugBlock) -> Aml:
    """The general-purpose event; an edge, whose status bit is cleared before the method runs."""
    return Scope("\\_GPE", Method(f"_E{block.gpe:02X}", 0, NotSerialized, Call("\\_SB.MSCN")))
