"""The SMBIOS table: who made the machine, what it is called, its processor and memory, for dmidecode and its like.

An entry point of 31 bytes on a 16-byte boundary in 0xF0000-0xFFFFF names the table: structures, each with a header of
four bytes (type, length, handle), a formatted area, and its strings. The structures here:

    0 BIOS    1 system    2 baseboard    3 chassis    4 processor    11 OEM strings
    16 memory array    17 memory device    19 where the array is mapped    32 boot status    127 end

Source: DMTF DSP0134, System Management BIOS (SMBIOS) Reference Specification 2.8.0; chapter and table numbers are its.
2.8 and not 3, for 3 has another entry point, which Linux before 3.19 does not look for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from pyvmm.boot.lowmem import HIGH_MEMORY_GPA, align_up
from pyvmm.units import KIB, MIB

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

SMBIOS_VERSION: Final = (2, 8)
ENTRY_POINT_ALIGNMENT: Final = 16
MANUFACTURER: Final = "pyvmm"
PRODUCT: Final = "PC"
MAX_STRINGS: Final = 0xFF
"""Of one structure: their numbers are bytes."""

# Structure types, chapter 7
BIOS, SYSTEM, BASEBOARD, CHASSIS, PROCESSOR, OEM_STRINGS = 0, 1, 2, 3, 4, 11
MEMORY_ARRAY, MEMORY_DEVICE, MAPPED_ADDRESS, BOOT, END = 16, 17, 19, 32, 127

FIELDS: Final[Mapping[int, tuple[str, ...]]] = {
    BIOS: ("vendor", "version", "date"),
    SYSTEM: ("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
    BASEBOARD: ("manufacturer", "product", "version", "serial", "asset", "location"),
    CHASSIS: ("manufacturer", "version", "serial", "asset", "sku"),
    PROCESSOR: ("manufacturer", "version", "serial", "asset", "part"),
    OEM_STRINGS: ("value",),
    MEMORY_DEVICE: ("manufacturer", "serial", "asset", "part"),
}
"""What a user can say of each type. "value" may come again."""

_DEFAULTS: Final[Mapping[int, Mapping[str, str]]] = {
    BIOS: {"vendor": MANUFACTURER, "version": "1", "date": "01/01/2026"},
    SYSTEM: {"manufacturer": MANUFACTURER, "product": PRODUCT},
    BASEBOARD: {"manufacturer": MANUFACTURER, "product": PRODUCT},
    CHASSIS: {"manufacturer": MANUFACTURER},
    PROCESSOR: {"manufacturer": MANUFACTURER},
    MEMORY_DEVICE: {"manufacturer": MANUFACTURER},
}

_ENTRY_POINT: Final = struct.Struct("<4s B B B B H B 5s 5s B H I H B")
"""Table 1: "_SM_", its checksum, length, version, largest structure, revision, formatted area; "_DMI_", its checksum,
length of the table, its address, number of structures, version in BCD."""
_INTERMEDIATE: Final = 0x10
"""Where "_DMI_" begins."""

# BIOS Characteristics and its extension bytes, 7.1.1 and 7.1.2
BIOS_CHARACTERISTICS_NOT_SUPPORTED: Final = 1 << 3
BIOS_EXTENSION_ACPI: Final = 1 << 0
BIOS_EXTENSION_VIRTUAL_MACHINE: Final = 1 << 4
BIOS_SEGMENT: Final = 0xF000
ROM_SIZE: Final = 0
"""64 KiB."""
NOT_GIVEN: Final = 0xFF
"""Releases of BIOS and embedded controller, 7.1."""

WAKE_UP_POWER_SWITCH: Final = 6
BASEBOARD_HOSTING: Final = 1
BOARD_MOTHERBOARD: Final = 0x0A
CHASSIS_OTHER: Final = 1
STATE_SAFE: Final = 3
SECURITY_NONE: Final = 3
CENTRAL_PROCESSOR: Final = 3
UNKNOWN_WIDTH: Final = 0xFFFF
FAMILY_OTHER: Final = 1
CPU_POPULATED_ENABLED: Final = 0x41
SOCKET_OTHER: Final = 1
CAPABILITY_64_BIT: Final = 1 << 2
NO_HANDLE: Final = 0xFFFF
NO_ERROR_HANDLE: Final = 0xFFFE
ARRAY_LOCATION_OTHER: Final = 1
ARRAY_USE_SYSTEM: Final = 3
NO_ERROR_CORRECTION: Final = 3
SIZE_EXTENDED_MIB: Final = 0x7FFF
FORM_FACTOR_DIMM: Final = 9
MEMORY_TYPE_RAM: Final = 7
MAX_CAPACITY_EXTENDED: Final = 0x80000000
ADDRESS_EXTENDED: Final = 0xFFFFFFFF
TYPE_DETAIL_OTHER: Final = 2

Values = Mapping[int, Sequence[tuple[str, str]]]
"""What the user says, by type: (field, value), of FIELDS."""


@dataclass
class _Table:
    """Structures as they are added."""

    said: Values
    data: bytearray = field(default_factory=bytearray)
    count: int = 0
    largest: int = 0

    def value(self, kind: int, name: str) -> str:
        """What the user says, or else the default; "" where nobody says anything."""
        return dict(self.said.get(kind, ())).get(name, _DEFAULTS.get(kind, {}).get(name, ""))

    def add(self, kind: int, layout: str, *fields: object, more: Sequence[str] = ()) -> int:
        """A structure whose formatted area is *fields*, little-endian by *layout*; a field that is a str is the number
        of that string, *more* strings have none. Its handle, by which others refer to it."""
        strings: list[bytes] = []
        packed: list[object] = []
        for one in fields:
            if isinstance(one, str):
                if one:
                    strings.append(one.encode() + b"\0")
                one = len(strings) if one else 0
            packed.append(one)
        strings += [one.encode() + b"\0" for one in more]
        area = struct.pack("<" + layout, *packed)
        structure = struct.pack("<BBH", kind, 4 + len(area), self.count) + area + (b"".join(strings) or b"\0") + b"\0"
        self.data += structure
        self.largest = max(self.largest, len(structure))
        self.count += 1
        return self.count - 1


def smbios_table(
    said: Values, *, cpus: int, regions: Sequence[tuple[int, int]], bios: bool = True
) -> tuple[bytes, bytes]:
    """The entry point, whose table address is 0 as yet, and the table.

    One processor of *cpus* cores, 1 to 255; RAM is *regions*, (gpa, bytes). Without *bios* there is a structure of it
    only where the user says so: firmware adds its own. Raises ValueError where the table has more than 64 KiB.
    """
    table = _Table(said)
    if bios or BIOS in said:
        _add_bios(table)
    _add_identity(table)
    _add_processor(table, cpus)
    if oem := [value for _, value in said.get(OEM_STRINGS, ())]:
        table.add(OEM_STRINGS, "B", len(oem), more=oem)
    _add_memory(table, regions)
    table.add(BOOT, "6x B", 0)  # no errors
    table.add(END, "")
    if len(table.data) > 0xFFFF:
        raise ValueError("the SMBIOS table has more than 64 KiB: say less of it")
    return _entry_point(table), bytes(table.data)


def write_smbios(memory: GuestMemory, gpa: int, end: int, entry_point: bytes, table: bytes) -> int:
    """Put both into *memory*, in [gpa, end) of 0xF0000-0xFFFFF, and return where they end; ValueError where they do not
    fit. 255 processors and 64 TiB of RAM take less than 1 KiB."""
    at = align_up(gpa, ENTRY_POINT_ALIGNMENT)
    table_gpa = align_up(at + len(entry_point), ENTRY_POINT_ALIGNMENT)
    if table_gpa + len(table) > min(end, HIGH_MEMORY_GPA):
        raise ValueError(
            f"the SMBIOS table has {len(table)} bytes, and there is room for {end - table_gpa}: say less of it"
        )
    memory.write(at, entry_point_at(entry_point, table_gpa))
    memory.write(table_gpa, table)
    return table_gpa + len(table)


def entry_point_at(entry_point: bytes, gpa: int) -> bytes:
    """The entry point of a table that is at *gpa*."""
    fields = list(_ENTRY_POINT.unpack(entry_point))
    fields[11] = gpa
    return _summed(_ENTRY_POINT.pack(*fields))


def parse_smbios(texts: Sequence[str]) -> Values:
    """What each type=N,FIELD=VALUE,... says; a comma in a value is written twice. Of a type and field the last
    counts. Raises ValueError."""
    said: dict[int, list[tuple[str, str]]] = {}
    for text in texts:
        pairs = [part.replace("\0", ",").partition("=") for part in text.replace(",,", "\0").split(",")]
        (first, _, number), *rest = pairs
        types = ", ".join(map(str, FIELDS))
        if first != "type" or number not in map(str, FIELDS):
            raise ValueError(f"{text!r} begins with type=N, N being one of {types}")
        kind = int(number)
        for name, _, value in rest:
            if name not in FIELDS[kind]:
                raise ValueError(f"{text!r}: type {kind} has no {name!r}: it has {', '.join(FIELDS[kind])}")
            if not value or not value.isascii() or not value.isprintable():
                raise ValueError(f"{text!r}: {name} is a text of ASCII characters")
            if name == "uuid":
                _uuid(value)
            said.setdefault(kind, []).append((name, value))
    if len(said.get(OEM_STRINGS, ())) > MAX_STRINGS:
        raise ValueError(f"there are at most {MAX_STRINGS} OEM strings")
    return said


def _uuid(text: str) -> bytes:
    """As it is in the table; all zeroes for "", which is none (7.2.1)."""
    try:
        return UUID(text).bytes_le if text else bytes(16)
    except ValueError:
        raise ValueError(f"{text!r} is no UUID") from None


def _add_bios(table: _Table) -> None:
    vendor, version, date = (table.value(BIOS, name) for name in FIELDS[BIOS])
    extensions = BIOS_EXTENSION_ACPI, BIOS_EXTENSION_VIRTUAL_MACHINE
    table.add(
        BIOS,
        "BBHBBQ BB BB BB",
        vendor,
        version,
        BIOS_SEGMENT,
        date,
        ROM_SIZE,
        BIOS_CHARACTERISTICS_NOT_SUPPORTED,
        *extensions,
        NOT_GIVEN,
        NOT_GIVEN,
        NOT_GIVEN,
        NOT_GIVEN,
    )


def _add_identity(table: _Table) -> None:
    """System, chassis, and the board in it."""
    manufacturer, product, version, serial, uuid, sku, family = (table.value(SYSTEM, name) for name in FIELDS[SYSTEM])
    system = manufacturer, product, version, serial, _uuid(uuid)
    table.add(SYSTEM, "BBBB16sBBB", *system, WAKE_UP_POWER_SWITCH, sku, family)
    manufacturer, version, serial, asset, sku = (table.value(CHASSIS, name) for name in FIELDS[CHASSIS])
    states = STATE_SAFE, STATE_SAFE, STATE_SAFE, SECURITY_NONE
    chassis = table.add(
        CHASSIS, "BB3B 4B IBBBBB", manufacturer, CHASSIS_OTHER, version, serial, asset, *states, 0, 0, 0, 0, 0, sku
    )
    manufacturer, product, version, serial, asset, location = (
        table.value(BASEBOARD, name) for name in FIELDS[BASEBOARD]
    )
    board = manufacturer, product, version, serial, asset, BASEBOARD_HOSTING, location
    table.add(BASEBOARD, "5BBBHBB", *board, chassis, BOARD_MOTHERBOARD, 0)


def _add_processor(table: _Table, cpus: int) -> None:
    manufacturer, version, serial, asset, part = (table.value(PROCESSOR, name) for name in FIELDS[PROCESSOR])
    table.add(
        PROCESSOR,
        "4BQBB 3H BB 3H 3B 3B HH",
        "CPU 0",
        CENTRAL_PROCESSOR,
        FAMILY_OTHER,
        manufacturer,
        0,  # its ID: CPUID says it
        version,
        *(0, 0, 0, 0),  # voltage and clocks: unknown
        CPU_POPULATED_ENABLED,
        SOCKET_OTHER,
        *(NO_HANDLE, NO_HANDLE, NO_HANDLE),  # of caches
        serial,
        asset,
        part,
        *(cpus, cpus, cpus),
        CAPABILITY_64_BIT,
        FAMILY_OTHER,
    )


def _add_memory(table: _Table, regions: Sequence[tuple[int, int]]) -> None:
    """An array of one device, which has all RAM."""
    size = sum(length for _, length in regions)
    small = size // KIB < MAX_CAPACITY_EXTENDED
    capacity = (size // KIB, 0) if small else (MAX_CAPACITY_EXTENDED, size)
    array = table.add(
        MEMORY_ARRAY,
        "BBBIHHQ",
        ARRAY_LOCATION_OTHER,
        ARRAY_USE_SYSTEM,
        NO_ERROR_CORRECTION,
        capacity[0],
        NO_ERROR_HANDLE,
        1,
        capacity[1],
    )
    manufacturer, serial, asset, part = (table.value(MEMORY_DEVICE, name) for name in FIELDS[MEMORY_DEVICE])
    mib = size // MIB
    table.add(
        MEMORY_DEVICE,
        "HHHHHBB BB BHH 4B BIH 3H",
        array,
        NO_ERROR_HANDLE,
        UNKNOWN_WIDTH,
        UNKNOWN_WIDTH,
        min(mib, SIZE_EXTENDED_MIB),
        FORM_FACTOR_DIMM,
        0,
        "DIMM 0",
        "",
        MEMORY_TYPE_RAM,
        TYPE_DETAIL_OTHER,
        0,
        manufacturer,
        serial,
        asset,
        part,
        0,
        mib if mib >= SIZE_EXTENDED_MIB else 0,
        *(0, 0, 0, 0),  # clock and voltages: unknown
    )
    for gpa, length in regions:
        first, last = gpa // KIB, (gpa + length) // KIB - 1
        if last < ADDRESS_EXTENDED:
            table.add(MAPPED_ADDRESS, "IIHBQQ", first, last, array, 1, 0, 0)
        else:
            extended = ADDRESS_EXTENDED, ADDRESS_EXTENDED
            table.add(MAPPED_ADDRESS, "IIHBQQ", *extended, array, 1, gpa, gpa + length - 1)


def _entry_point(table: _Table) -> bytes:
    major, minor = SMBIOS_VERSION
    return _summed(
        _ENTRY_POINT.pack(
            b"_SM_",
            0,
            _ENTRY_POINT.size,
            major,
            minor,
            table.largest,
            0,
            bytes(5),
            b"_DMI_",
            0,
            len(table.data),
            0,
            table.count,
            major << 4 | minor,
        )
    )


def _summed(entry_point: bytes) -> bytes:
    """With both checksums: of what begins with "_DMI_", and of all."""
    data = bytearray(entry_point)
    for start, at in ((_INTERMEDIATE, _INTERMEDIATE + 5), (0, 4)):
        data[at] = 0
        data[at] = -sum(data[start:]) & 0xFF
    return bytes(data)
