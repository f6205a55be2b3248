"""The tables of docs/machine.md are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pyvmm import guests
from pyvmm.board import layout
from pyvmm.boot import lowmem
from pyvmm.config import MachineConfig
from pyvmm.machine.describe import described
from pyvmm.pci.regs import PCI_COMMAND, PCI_INTERRUPT_LINE, PCI_INTERRUPT_PIN

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "machine.md").read_text()


def table(head: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is called *head*, by that column."""
    lines = iter(PAGE[PAGE.index(f"\n| {head} |") :].splitlines()[3:])
    rows: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = rest
    return rows


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", text)]


def span(text: str) -> tuple[int, int]:
    """(start, end); the end is exclusive."""
    start, last = numbers(text)
    return start, last + 1


def test_addresses() -> None:
    rows = table("guest physical")
    spans = {span(row) for row in rows}
    text = span(rows["0xa0000 to 0xbffff"][0].replace("0xb8000 to", "0xb8000"))
    assert text == (layout.VGA_TEXT, layout.VGA_TEXT + layout.VGA_TEXT_SIZE)
    assert spans == {
        (0, lowmem.EBDA_GPA),
        (lowmem.EBDA_GPA, lowmem.EBDA_GPA + lowmem.EBDA_SIZE),
        (layout.LOW_RAM_END, layout.HIGH_MEMORY),
        (layout.HIGH_MEMORY, 1 << 20),
        (1 << 20, layout.HOLE_START),
        (layout.PCI_MMIO_START, layout.PCI_MMIO_END),
        (layout.ECAM_START, layout.ECAM_START + layout.ECAM_SIZE),
        (layout.IOAPIC, layout.IOAPIC + layout.IOAPIC_SIZE),
        (layout.LAPIC, layout.LAPIC + 0x1000),
        (layout.IDENTITY_MAP, layout.TSS + 3 * 0x1000),
        (layout.PCI_MMIO64_START, layout.PCI_MMIO64_END),
    }
    assert numbers(rows["0x0 to 0x9fbff"][0]) == [lowmem.INFO_GPA, lowmem.LOADER_END - 1]
    tables = [layout.ACPI_TABLES, layout.ACPI_TABLES + layout.ACPI_TABLES_SIZE - 1, lowmem.BIOS_GPA]
    assert numbers(rows["0xc0000 to 0xfffff"][0]) == tables
    assert numbers(rows["0x100000 to 0xbfffffff"][0]) == [layout.HOLE_END]


def ports(text: str) -> set[int]:
    """What `0x40 to 0x43, 0x61` names."""
    found: set[int] = set()
    for piece in filter(None, text.split(", ")):
        named = numbers(piece)
        found.update(range(named[0], named[-1] + 1))
    return found


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_parts_ports_and_irqs(irqchip: str) -> None:
    rows = {name: (ports(where), {int(irq) for irq in irqs.split()}) for name, (where, irqs) in table("part").items()}
    with described(MachineConfig(guest="hello", irqchip=irqchip)) as board:  # type: ignore[arg-type]
        there = {
            placement.name: ({port for at, n in placement.ports for port in range(at, at + n)}, set(placement.irqs))
            for placement in board.parts
            if placement.ports or placement.irqs
        }
        assert rows == there
        assert {name for name in board.trace.names if name in rows} == {
            placement.name for placement in board.parts if placement.part is not None and placement.name in rows
        }


def test_slots_bars_and_intx() -> None:
    options = {"virtio_input": "standard", "tablet": True, "root_ports": 4, "rng": True}
    with described(MachineConfig(guest="hello", devices=("pci-testdev",), **options)) as board:  # type: ignore[arg-type]
        places = [board.pci.place_of(function) for function in board.pci.all_functions()]
        assert places == [
            *("00:00.0", "00:01.0", "00:02.0", "00:0a.0", "00:0a.1", "00:0a.2"),
            *(f"00:{layout.ROOT_PORT_SLOT + n:02x}.0" for n in range(4)),
        ]
        bars = [
            (bar.io, bar.address(function.config))
            for function in board.pci.all_functions()
            for bar in function.bars.values()
        ]
        assert min(base for io, base in bars if not io) == layout.PCI_MMIO_START == 0xC0000000
        assert min(base for io, base in bars if io) == layout.PCI_IO[0] == 0xC000
        for place, function in board.pci.parts():
            if function.bars:
                assert function.command & 7 in (1, 2, 3), "decoding, and no bus mastering"
            if pin := function.config.get(PCI_INTERRUPT_PIN, 1):
                line = (int(place[:2], 16) + pin - 1) % 4
                assert function.config.get(PCI_INTERRUPT_LINE, 1) == layout.PCI_IRQS[line]
        assert PCI_COMMAND == 4
    assert layout.PCI_GSIS == (16, 17, 18, 19) and layout.PCI_IRQS == (10, 11, 10, 11) and layout.FIRST_MSI_GSI == 24
    assert "GSI 16 + (S + P) mod 4" in PAGE and "IRQ\n10, 11, 10 or 11" in PAGE and "GSIs\nfrom 24 on" in PAGE


def test_keys_of_guest_toml() -> None:
    keys = {key.strip() for row in table("key") for key in row.split(",")}
    assert keys == {field.name for field in fields(guests.Guest)} - {"name", "symbols", "image"}
    rows = table("key")
    assert set(re.findall(r"`([a-z-]+)`", rows["mode"][0])) == set(guests.MODES)
    assert set(re.findall(r"`([a-z-]+)`", rows["end, value"][0])) == set(guests.ENDS)
