"""The header that all ACPI system description tables share (ACPI 6.5, 5.2.6) and their checksum."""

from __future__ import annotations

import struct

OEM_ID = b"PYVMM "
CREATOR_ID = b"PYVM"
CREATOR_REVISION = 1

HEADER = struct.Struct("<4sIBB6s8sI4sI")
"""Signature, Length, Revision, Checksum, OEMID, OEM Table ID, OEM Revision, Creator ID, Creator Revision: 36 bytes."""

CHECKSUM_OFFSET = 9


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of *data* and itself zero modulo 256."""
    return -sum(data) & 0xFF


def table(
    signature: bytes,
    revision: int,
    body: bytes,
    oem_id: bytes = OEM_ID,
    oem_table_id: bytes = b"",
    oem_revision: int = 1,
) -> bytes:
    """A whole table: the header with its length and checksum, then *body*."""
    header = HEADER.pack(
        signature,
        HEADER.size + len(body),
        revision,
        0,
        oem_id.ljust(6),
        oem_table_id.ljust(8) if oem_table_id else b"PYVM" + signature,
        oem_revision,
        CREATOR_ID,
        CREATOR_REVISION,
    )
    data = bytearray(header + body)
    data[CHECKSUM_OFFSET] = checksum(data)
    return bytes(data)
