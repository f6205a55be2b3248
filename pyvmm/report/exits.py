"""The last exits of a vCPU on a few lines: what a guest wrote on its console is one, and what repeats is one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from kvm_cffi import ExitRecord, constants
from pyvmm.errors import printable

LINES: Final = 8
LSR: Final = 5
"""Offset of a UART's line status register (16550A data sheet), which drivers read before each byte."""


def describe_exit(record: ExitRecord) -> str:
    """One of the last exits on a line."""
    name = constants.exit_name(record.reason)
    if record.reason == constants.KVM_EXIT_IO:
        way = "out" if record.is_write else "in "
        items = f" x{record.items}" if record.items != 1 else ""
        return f"{name:<18} {way} {record.address:#06x} size {record.size}{items}, {record.data:#x}"
    if record.reason == constants.KVM_EXIT_MMIO:
        way = "write" if record.is_write else "read"
        return f"{name:<18} {way} {record.address:#x} size {record.size}, {record.data:#x}"
    return name


def exit_lines(records: Sequence[ExitRecord], uarts: Collection[int] = (), consoles: Collection[int] = ()) -> list[str]:
    """The latest of *records*, each line with the number of its first exit.

    *uarts* are the ports of their data registers, *consoles* those of debug consoles: bytes written there are joined,
    and looks at a UART's line status between them are passed over.
    """
    lines: list[str] = []
    i = 0
    while i < len(records):
        first = records[i]
        text, end = bytearray(), i
        if _is_byte(first) and (first.address in uarts or first.address in consoles):
            status = first.address + LSR if first.address in uarts else None
            while end < len(records):
                record = records[end]
                if _is_byte(record) and record.address == first.address:
                    text.append(record.data & 0xFF)
                elif not (record.reason == constants.KVM_EXIT_IO and not record.is_write and record.address == status):
                    break
                end += 1
        if len(text) > 1:
            shown = printable(text.decode("ascii", "backslashreplace"))
            lines.append(
                f"{first.number:>8} {constants.exit_name(first.reason):<18} out {first.address:#06x} '{shown}'"
            )
        else:
            end = i + 1
            while end < len(records) and records[end]._replace(number=0) == first._replace(number=0):
                end += 1
            times = f", {end - i} times" if end - i > 1 else ""
            lines.append(f"{first.number:>8} {describe_exit(first)}{times}")
        i = end
    return lines[-LINES:]


def _is_byte(record: ExitRecord) -> bool:
    return record.reason == constants.KVM_EXIT_IO and record.is_write and record.size == 1 and record.items == 1
