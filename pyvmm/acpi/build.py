"""All ACPI tables of a machine, placed in guest memory or written to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyvmm.acpi import nodes, tables
from pyvmm.acpi.platform import Platform
from pyvmm.memory import GuestMemory

ACPI_GPA: Final = 0xE0000
"""Where the tables go, RSDP first: the start of the area that an OS searches for it (ACPI 6.5, 5.2.5.1)."""

ACPI_ROOM: Final = 0x10000
"""Bytes there; MP table and firmware begin at 0xF0000. A machine with 255 vCPUs takes less than a third."""

FACS_ALIGNMENT: Final = 64
TABLE_ALIGNMENT: Final = 16


@dataclass(frozen=True)
class PlacedTable:
    """A finished table at its guest physical address."""

    gpa: int
    name: str
    """The file's stem: the signature in lower case."""
    data: bytes


@dataclass(frozen=True)
class AcpiTables:
    """The tables of one machine; addresses are chosen by place()."""

    platform: Platform
    dsdt: bytes
    others: tuple[tuple[str, bytes], ...]
    """What the root tables point at, but for the FADT: (name, table)."""

    def place(self, gpa: int = ACPI_GPA) -> tuple[PlacedTable, ...]:
        """The tables at *gpa* and up, the RSDP first; *gpa* is a multiple of 64, and below 4 GiB.

        An RSDP outside 0xE0000-0xFFFFF is found only by a guest that is told of it. Raises ValueError if the tables
        at the default address do not fit there.
        """
        if gpa % FACS_ALIGNMENT:
            raise ValueError(f"ACPI tables at {gpa:#x}, not a multiple of {FACS_ALIGNMENT}")
        limit = ACPI_GPA + ACPI_ROOM if gpa == ACPI_GPA else 1 << 32
        placed: list[PlacedTable] = []
        end = gpa + FACS_ALIGNMENT  # behind the RSDP

        def append(name: str, data: bytes) -> int:
            nonlocal end
            start = end + -end % TABLE_ALIGNMENT
            end = start + len(data)
            if end > limit:
                raise ValueError(f"the ACPI tables end above {limit:#x}")
            placed.append(PlacedTable(start, name, data))
            return start

        facs_gpa = append("facs", tables.facs())
        dsdt_gpa = append("dsdt", self.dsdt)
        roots = [append("facp", tables.fadt(self.platform, facs_gpa, dsdt_gpa))]
        roots += [append(name, data) for name, data in self.others]
        rsdt_gpa = append("rsdt", tables.rsdt(roots))
        xsdt_gpa = append("xsdt", tables.xsdt(roots))
        return (PlacedTable(gpa, "rsdp", tables.rsdp(rsdt_gpa, xsdt_gpa)), *placed)

    def install(self, memory: GuestMemory, gpa: int = ACPI_GPA) -> int:
        """Write the tables into guest memory at *gpa* and return the RSDP's address, which is *gpa*."""
        for table in self.place(gpa):
            memory.write(table.gpa, table.data)
        return gpa


def build(platform: Platform) -> AcpiTables:
    """The tables that say what *platform* is."""
    others = []
    if platform.apic is not None:
        others.append(("apic", tables.madt(platform, platform.apic)))
    if platform.pci is not None and platform.pci.ecam is not None:
        others.append(("mcfg", tables.mcfg(platform.pci, platform.pci.ecam)))
    if platform.hpet is not None:
        others.append(("hpet", tables.hpet(platform.hpet)))
    if platform.memory is not None:
        others.append(("srat", tables.srat(platform, platform.memory)))
    others.append(("ssdt", nodes.ssdt(platform)))
    return AcpiTables(platform, nodes.dsdt(platform), tuple(others))


def write(acpi: AcpiTables, out: Path, gpa: int = ACPI_GPA) -> tuple[Path, ...]:
    """Write each table to a file of its own in the directory *out*, made if need be: dsdt.aml, ssdt.aml, facp.dat ...

    The bytes are those that a guest gets at *gpa*. Returns the files, the RSDP first; raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for table in acpi.place(gpa):
        suffix = ".aml" if table.name in ("dsdt", "ssdt") else ".dat"
        file = out / (table.name + suffix)
        file.write_bytes(table.data)
        files.append(file)
    return tuple(files)
