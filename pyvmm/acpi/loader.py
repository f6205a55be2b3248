"""The ACPI tables as files of fw_cfg, with the linker script by which firmware puts them where it likes.

    etc/acpi/tables   all tables but the RSDP, one behind the other; a pointer in them is an offset in this file
    etc/acpi/rsdp     the RSDP; likewise
    etc/table-loader  commands of 128 bytes: allocate a file, add a file's address to a pointer, make a checksum

Source: QEMU hw/acpi/bios-linker-loader.c, struct BiosLinkerLoaderEntry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pyvmm.acpi import sdt
from pyvmm.acpi.build import FACS_ALIGNMENT, AcpiTables, PlacedTable
from pyvmm.acpi.tables import FadtBody, Rsdp

TABLES_FILE: Final = "etc/acpi/tables"
RSDP_FILE: Final = "etc/acpi/rsdp"
LOADER_FILE: Final = "etc/table-loader"

BIOS_LINKER_LOADER_COMMAND_ALLOCATE: Final = 1
BIOS_LINKER_LOADER_COMMAND_ADD_POINTER: Final = 2
BIOS_LINKER_LOADER_COMMAND_ADD_CHECKSUM: Final = 3
BIOS_LINKER_LOADER_ALLOC_ZONE_HIGH: Final = 1
BIOS_LINKER_LOADER_ALLOC_ZONE_FSEG: Final = 2

_ALLOCATE: Final = struct.Struct("<I 56s I B 63x")
"""Command, file, alignment, zone."""
_ADD_POINTER: Final = struct.Struct("<I 56s 56s I B 7x")
"""Command, file with the pointer, file that it points into, the pointer's offset and size."""
_ADD_CHECKSUM: Final = struct.Struct("<I 56s I I I 56x")
"""Command, file, offset of the checksum, and start and length of what it is of."""

RSDP_ALIGNMENT: Final = 16
RSDP_V1_LENGTH: Final = 20
"""Of what the RSDP's first checksum is of (5.2.5.3)."""
_FADT_POINTERS: Final = (FadtBody.FIRMWARE_CTRL, FadtBody.DSDT, FadtBody.X_DSDT)


def loader_files(acpi: AcpiTables) -> dict[str, bytes]:
    """The three files, by name."""
    # At address 0 each address is the offset. The file begins with the RSDP's place, which stays empty.
    placed = acpi.place(0)
    tables = bytearray(max(table.gpa + len(table.data) for table in placed))
    rsdp = bytearray()
    commands = [_allocate(TABLES_FILE, FACS_ALIGNMENT, BIOS_LINKER_LOADER_ALLOC_ZONE_HIGH)]
    commands.append(_allocate(RSDP_FILE, RSDP_ALIGNMENT, BIOS_LINKER_LOADER_ALLOC_ZONE_FSEG))
    for table in placed:
        if table.name == "rsdp":
            rsdp += table.data
            continue
        tables[table.gpa : table.gpa + len(table.data)] = table.data
        pointers = [_add_pointer(TABLES_FILE, table.gpa + offset, size) for offset, size in _pointers(table)]
        commands += pointers
        if pointers:
            commands.append(_add_checksum(TABLES_FILE, tables, table.gpa, sdt.CHECKSUM_OFFSET, len(table.data)))
    for field in (Rsdp.RsdtAddress, Rsdp.XsdtAddress):
        commands.append(_add_pointer(RSDP_FILE, field.offset, field.size))
    # The second is over the first.
    commands.append(_add_checksum(RSDP_FILE, rsdp, 0, Rsdp.Checksum.offset, RSDP_V1_LENGTH))
    commands.append(_add_checksum(RSDP_FILE, rsdp, 0, Rsdp.Extended_Checksum.offset, len(rsdp)))
    return {TABLES_FILE: bytes(tables), RSDP_FILE: bytes(rsdp), LOADER_FILE: b"".join(commands)}


def _pointers(table: PlacedTable) -> Iterator[tuple[int, int]]:
    """(offset, size) of each address in *table*."""
    if table.name == "facp":
        yield from ((sdt.HEADER.size + field.offset, field.size) for field in _FADT_POINTERS)
    elif table.name in ("rsdt", "xsdt"):
        size = 4 if table.name == "rsdt" else 8
        yield from ((offset, size) for offset in range(sdt.HEADER.size, len(table.data), size))


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return _ALLOCATE.pack(BIOS_LINKER_LOADER_COMMAND_ALLOCATE, file.encode(), alignment, zone)


def _add_pointer(file: str, offset: int, size: int) -> bytes:
    """To the tables: all pointers are."""
    return _ADD_POINTER.pack(BIOS_LINKER_LOADER_COMMAND_ADD_POINTER, file.encode(), TABLES_FILE.encode(), offset, size)


def _add_checksum(file: str, data: bytearray, start: int, offset: int, length: int) -> bytes:
    """Of *length* bytes from *start*, where it is at *offset*: 0 until then, for not all firmware subtracts what is
    there."""
    data[start + offset] = 0
    return _ADD_CHECKSUM.pack(BIOS_LINKER_LOADER_COMMAND_ADD_CHECKSUM, file.encode(), start + offset, start, length)
