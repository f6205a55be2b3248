"""The AML of the processors; and where they come and go, what of the registers of CPU hot-plug it takes.

An OS is told by Notify: 1, look whether the CPU has come; 3, let go of it and call _EJ0 (ACPI 6.5, 5.6.6 and 6.3.3). It
answers by _OST. Linux wants _MAT, the CPU's entry of the MADT, of each that may come, for the table itself has none for
one that was absent when it was written; and of the others too, which may go and come again.

Registers are those of the CPU that is selected, so whoever selects one holds the mutex until it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyvmm.acpi.aml import (
    Acquire,
    Aml,
    Arg0,
    Arg1,
    Arg2,
    Buffer,
    ByteAcc,
    Call,
    Device,
    DWordAcc,
    Else,
    Field,
    FieldUnit,
    If,
    LEqual,
    Local0,
    Method,
    Mutex,
    Name,
    NoLock,
    Notify,
    NotSerialized,
    Offset,
    OperationRegion,
    Ref,
    Release,
    Return,
    Scope,
    Serialized,
    Store,
    SystemIO,
    While,
    WriteAsZeros,
)
from pyvmm.acpi.hotplug import NOTIFY_DEVICE_CHECK, NOTIFY_EJECT_REQUEST
from pyvmm.acpi.platform import PRESENT, CpuHotplugBlock, Platform
from pyvmm.acpi.tables import LAPIC_ENABLED, local_apic

COMMAND_NEXT: Final = 0
COMMAND_OST_EVENT: Final = 1
COMMAND_OST_STATUS: Final = 2


def _name(number: int) -> str:
    return f"C{number:03X}"


def _processor(number: int, hotplug: CpuHotplugBlock | None) -> Aml:
    """vCPU *number*; _UID is the ACPI processor UID of its MADT entry (8.4.1)."""
    body = [Name("_HID", "ACPI0007"), Name("_UID", number)]
    if hotplug is not None:
        body += [
            Name("_MAT", Buffer(local_apic(number, LAPIC_ENABLED))),
            Method("_STA", 0, NotSerialized, Return(Call("CSTA", number))),
            Method("_OST", 3, NotSerialized, Call("COST", number, Arg0, Arg1)),
        ]
        if number:  # the first stays
            body.append(Method("_EJ0", 1, NotSerialized, Call("CEJ0", number)))
    return Device(_name(number), *body)


def _registers(block: CpuHotplugBlock) -> Iterator[Aml]:
    yield OperationRegion("CPHR", SystemIO, block.io.first, block.io.length)
    yield Field("CPHR", DWordAcc, NoLock, WriteAsZeros, FieldUnit("CSEL", 32), Offset(8), FieldUnit("CDAT", 32))
    status = (FieldUnit(name, 1) for name in ("CPEN", "CINS", "CRMV", "CEJC"))
    yield Field("CPHR", ByteAcc, NoLock, WriteAsZeros, Offset(4), *status, Offset(5), FieldUnit("CCMD", 8))
    yield Mutex("CLCK")


def _methods(cpus: int) -> Iterator[Aml]:
    take, let_go = Acquire("CLCK"), Release("CLCK")
    yield Method(
        "CSTA",
        1,
        Serialized,
        take,
        Store(Arg0, "CSEL"),
        Store(0, Local0),
        If(Ref("CPEN"), Store(PRESENT, Local0)),
        let_go,
        Return(Local0),
    )
    yield Method("CEJ0", 1, Serialized, take, Store(Arg0, "CSEL"), Store(1, "CEJC"), let_go)
    yield Method(
        "COST",
        3,
        Serialized,
        take,
        Store(Arg0, "CSEL"),
        Store(COMMAND_OST_EVENT, "CCMD"),
        Store(Arg1, "CDAT"),
        Store(COMMAND_OST_STATUS, "CCMD"),
        Store(Arg2, "CDAT"),
        let_go,
    )
    yield Method("CNTF", 2, NotSerialized, *(If(LEqual(Arg0, n), Notify(_name(n), Arg1)) for n in range(cpus)))
    yield Method("CSCN", 0, Serialized, take, Store(0, "CSEL"), Store(1, Local0), _tell_all(), let_go)


def _tell_all() -> Aml:
    """Each CPU of which the OS was not told."""
    again = Store(1, Local0)
    come = (Call("CNTF", Ref("CDAT"), NOTIFY_DEVICE_CHECK), Store(1, "CINS"), again)
    go = (Call("CNTF", Ref("CDAT"), NOTIFY_EJECT_REQUEST), Store(1, "CRMV"), again)
    return While(
        Local0,
        Store(COMMAND_NEXT, "CCMD"),
        Store(0, Local0),
        If(Ref("CINS"), *come),
        Else(If(Ref("CRMV"), *go)),
    )


def processors(platform: Platform) -> list[Aml]:
    """What a table has of them."""
    block = platform.cpu_hotplug
    devices = (_processor(number, block) for number in range(platform.cpus))
    if block is None:
        return [Scope("\\_SB", *devices)]
    return [
        Scope("\\_SB", *_registers(block), *devices, *_methods(platform.cpus)),
        # An edge, whose status bit is cleared before the method runs.
        Scope("\\_GPE", Method(f"_E{block.gpe:02X}", 0, NotSerialized, Call("\\_SB.CSCN"))),
    ]
