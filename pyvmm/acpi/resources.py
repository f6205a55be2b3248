"""Resource descriptors of _CRS and _PRS, each named as its ASL macro and taking the macro's arguments in ASL's order.

Source: ACPI 6.5, 6.4 (Resource Data Types for ACPI) and 19.6 (the macros). Addresses and lengths are in bytes.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from pyvmm.acpi.aml import Aml, Buffer


class Resource(bytes):
    """One descriptor."""


class IODecode(IntEnum):
    Decode10 = 0
    Decode16 = 1


class ResourceUsage(IntEnum):
    ResourceProducer = 0
    ResourceConsumer = 1


class Decode(IntEnum):
    PosDecode = 0
    SubDecode = 1


class MinType(IntEnum):
    MinNotFixed = 0
    MinFixed = 1


class MaxType(IntEnum):
    MaxNotFixed = 0
    MaxFixed = 1


class MemoryType(IntEnum):
    NonCacheable = 0
    Cacheable = 1
    WriteCombining = 2
    Prefetchable = 3


class ReadWriteType(IntEnum):
    ReadOnly = 0
    ReadWrite = 1


class ISARanges(IntEnum):
    NonISAOnlyRanges = 1
    ISAOnlyRanges = 2
    EntireRange = 3


class EdgeLevel(IntEnum):
    Level = 0
    Edge = 1


class ActiveLevel(IntEnum):
    ActiveHigh = 0
    ActiveLow = 1


class Shared(IntEnum):
    Exclusive = 0
    Shared = 1


Decode10: Final = IODecode.Decode10
Decode16: Final = IODecode.Decode16
ResourceProducer: Final = ResourceUsage.ResourceProducer
ResourceConsumer: Final = ResourceUsage.ResourceConsumer
PosDecode: Final = Decode.PosDecode
SubDecode: Final = Decode.SubDecode
MinNotFixed: Final = MinType.MinNotFixed
MinFixed: Final = MinType.MinFixed
MaxNotFixed: Final = MaxType.MaxNotFixed
MaxFixed: Final = MaxType.MaxFixed
NonCacheable: Final = MemoryType.NonCacheable
Cacheable: Final = MemoryType.Cacheable
WriteCombining: Final = MemoryType.WriteCombining
Prefetchable: Final = MemoryType.Prefetchable
ReadOnly: Final = ReadWriteType.ReadOnly
ReadWrite: Final = ReadWriteType.ReadWrite
NonISAOnlyRanges: Final = ISARanges.NonISAOnlyRanges
ISAOnlyRanges: Final = ISARanges.ISAOnlyRanges
EntireRange: Final = ISARanges.EntireRange
Level: Final = EdgeLevel.Level
Edge: Final = EdgeLevel.Edge
ActiveHigh: Final = ActiveLevel.ActiveHigh
ActiveLow: Final = ActiveLevel.ActiveLow
Exclusive: Final = Shared.Exclusive

_MEMORY: Final = 0
_IO: Final = 1
_BUS_NUMBER: Final = 2


def ResourceTemplate(*resources: Resource) -> Aml:
    """The buffer of the descriptors and an end tag, whose checksum 0 means "not checked" (6.4.2.9)."""
    return Buffer(b"".join(resources) + b"\x79\x00")


def IO(decode: IODecode, minimum: int, maximum: int, alignment: int, length: int) -> Resource:
    return Resource(struct.pack("<BBHHBB", 0x47, decode, minimum, maximum, alignment, length))


def _irq_mask(interrupts: tuple[int, ...]) -> int:
    if not interrupts or any(not 0 <= irq <= 15 for irq in interrupts):
        raise ValueError(f"ISA interrupts are 0 to 15: {interrupts}")
    return sum(1 << irq for irq in set(interrupts))


def IRQNoFlags(*interrupts: int) -> Resource:
    """ISA interrupts, edge-triggered, active high."""
    return Resource(struct.pack("<BH", 0x22, _irq_mask(interrupts)))


def IRQ(edge_level: EdgeLevel, active: ActiveLevel, shared: Shared, *interrupts: int) -> Resource:
    """ISA interrupts with trigger, polarity and sharing."""
    flags = edge_level | active << 3 | shared << 4
    return Resource(struct.pack("<BHB", 0x23, _irq_mask(interrupts), flags))


def Interrupt(
    usage: ResourceUsage, edge_level: EdgeLevel, active: ActiveLevel, shared: Shared, *interrupts: int
) -> Resource:
    """Global system interrupts, 32 bits each; at most 255 of them."""
    flags = usage | edge_level << 1 | active << 2 | shared << 3
    body = struct.pack(f"<BB{len(interrupts)}I", flags, len(interrupts), *interrupts)
    return Resource(struct.pack("<BH", 0x89, len(body)) + body)


def Memory32Fixed(access: ReadWriteType, base: int, length: int) -> Resource:
    return Resource(struct.pack("<BHBII", 0x86, 9, access, base, length))


def _address_space(
    tag: int, size: str, kind: int, flags: int, type_flags: int, fields: tuple[int, int, int, int, int]
) -> Resource:
    body = struct.pack(f"<BBB5{size}", kind, flags, type_flags, *fields)
    return Resource(struct.pack("<BH", tag, len(body)) + body)


def _general_flags(decode: Decode, min_type: MinType, max_type: MaxType, usage: ResourceUsage) -> int:
    return usage | decode << 1 | min_type << 2 | max_type << 3


def WordBusNumber(
    usage: ResourceUsage,
    min_type: MinType,
    max_type: MaxType,
    decode: Decode,
    granularity: int,
    minimum: int,
    maximum: int,
    translation: int,
    length: int,
) -> Resource:
    flags = _general_flags(decode, min_type, max_type, usage)
    return _address_space(0x88, "H", _BUS_NUMBER, flags, 0, (granularity, minimum, maximum, translation, length))


def WordIO(
    usage: ResourceUsage,
    min_type: MinType,
    max_type: MaxType,
    decode: Decode,
    ranges: ISARanges,
    granularity: int,
    minimum: int,
    maximum: int,
    translation: int,
    length: int,
) -> Resource:
    flags = _general_flags(decode, min_type, max_type, usage)
    return _address_space(0x88, "H", _IO, flags, ranges, (granularity, minimum, maximum, translation, length))


def DWordMemory(
    usage: ResourceUsage,
    decode: Decode,
    min_type: MinType,
    max_type: MaxType,
    cacheable: MemoryType,
    access: ReadWriteType,
    granularity: int,
    minimum: int,
    maximum: int,
    translation: int,
    length: int,
) -> Resource:
    flags = _general_flags(decode, min_type, max_type, usage)
    fields = (granularity, minimum, maximum, translation, length)
    return _address_space(0x87, "I", _MEMORY, flags, access | cacheable << 1, fields)


def QWordMemory(
    usage: ResourceUsage,
    decode: Decode,
    min_type: MinType,
    max_type: MaxType,
    cacheable: MemoryType,
    access: ReadWriteType,
    granularity: int,
    minimum: int,
    maximum: int,
    translation: int,
    length: int,
) -> Resource:
    flags = _general_flags(decode, min_type, max_type, usage)
    fields = (granularity, minimum, maximum, translation, length)
    return _address_space(0x8A, "Q", _MEMORY, flags, access | cacheable << 1, fields)
