"""The tables through a linker that does what the script says are those of a direct boot at the same place."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import pytest

from pyvmm.acpi.build import build
from pyvmm.acpi.loader import LOADER_FILE, RSDP_FILE, TABLES_FILE, loader_files
from pyvmm.acpi.platform import PciRoot, Platform, PowerManagement, Window
from pyvmm.acpi.tables import Rsdp

FSEG: Final = 0xF5000


def text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


class Linker:
    """What firmware does with etc/table-loader: files at places of its choice, zone 1 at *high*, zone 2 at *fseg*."""

    def __init__(self, files: dict[str, bytes], high: int, fseg: int) -> None:
        self._files = files
        self._zones = {1: high, 2: fseg}
        self.at: dict[str, int] = {}
        self.loaded: dict[str, bytearray] = {}
        script = files[LOADER_FILE]
        assert len(script) % 128 == 0
        for start in range(0, len(script), 128):
            self._run(*struct.unpack_from("<I124s", script, start))

    def _run(self, command: int, arguments: bytes) -> None:
        if command == 1:
            name, alignment, zone = text(arguments[:56]), *struct.unpack_from("<IB", arguments, 56)
            assert name not in self.at and self._zones[zone] % alignment == 0
            self.at[name] = self._zones[zone]
            self.loaded[name] = bytearray(self._files[name])
        elif command == 2:
            data, target = self.loaded[text(arguments[:56])], text(arguments[56:112])
            offset, size = struct.unpack_from("<IB", arguments, 112)
            value = int.from_bytes(data[offset : offset + size], "little")
            assert value < len(self.loaded[target]), "an offset in the other file"
            data[offset : offset + size] = (value + self.at[target]).to_bytes(size, "little")
        else:
            assert command == 3
            data = self.loaded[text(arguments[:56])]
            at, start, length = struct.unpack_from("<III", arguments, 56)
            assert data[at] == 0, "for firmware that sums it up with the rest"
            data[at] = -sum(data[start : start + length]) & 0xFF


PLATFORMS: Final[dict[str, Callable[[PowerManagement], Platform]]] = {
    "one CPU, PIC only": lambda pm: Platform(1, pm, apic=None),
    "PCI Express": lambda pm: Platform(4, pm, pci=PciRoot(Window(0xC0000000, 0xDFFFFFFF))),
    "255 CPUs": lambda pm: Platform(255, pm, pci=PciRoot(Window(0xC0000000, 0xDFFFFFFF)), hpet=0xFED00000),
}


@pytest.mark.parametrize("high", [0x1000, 0x7FFC0, 0x3FFF0000, 0xBFFE0000])
@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
def test_linked_tables_are_those_of_a_direct_boot(
    platform: Callable[[PowerManagement], Platform], high: int, pm: PowerManagement
) -> None:
    acpi = build(platform(pm))
    linker = Linker(loader_files(acpi), high, FSEG)
    direct = {table.name: table for table in acpi.place(high)}
    for name, table in direct.items():
        if name != "rsdp":
            start = table.gpa - high
            assert linker.loaded[TABLES_FILE][start : start + len(table.data)] == table.data, name
    rsdp = bytes(linker.loaded[RSDP_FILE])
    assert rsdp == direct["rsdp"].data and linker.at[RSDP_FILE] == FSEG
    assert sum(rsdp[:20]) & 0xFF == 0 and sum(rsdp) & 0xFF == 0
    assert Rsdp.from_buffer_copy(rsdp).XsdtAddress == direct["xsdt"].gpa
