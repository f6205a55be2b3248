"""Starting a kernel of the user's: its bytes, and the tables of the machine that it will look for."""

from __future__ import annotations

from pyvmm.acpi.build import build
from pyvmm.board import layout
from pyvmm.board.tables import describe
from pyvmm.boot.e820 import E820_TYPE_RESERVED, E820Entry, e820_map
from pyvmm.boot.entry import CpuState
from pyvmm.boot.flat import Flat
from pyvmm.boot.load import load
from pyvmm.boot.mptable import PciInterrupt, write_bda, write_mptable
from pyvmm.config import MachineConfig
from pyvmm.memory import GuestMemory


def load_kernel(config: MachineConfig, memory: GuestMemory, phys_bits: int, *, fresh: bool = True) -> CpuState:
    """Put the kernel and its modules into RAM, with ACPI tables, MP table and BIOS data area unless it is a flat binary
    that asks for none of them; *fresh* as in load(). Raises BootError."""
    assert config.kernel is not None
    flat = Flat.parse(config.flat) if config.flat else None
    reserved = ((layout.ECAM_START, layout.ECAM_SIZE), (layout.ACPI_TABLES, layout.ACPI_TABLES_SIZE))
    e820 = e820_map(memory.regions, [E820Entry(*where, E820_TYPE_RESERVED) for where in reserved])
    rsdp = 0
    if flat is None or flat.mode == "linux32":
        platform = describe(config, phys_bits)
        rsdp = build(platform).install(memory, layout.ACPI_TABLES)
        write_bda(memory)
        if platform.apic is not None:
            gsis = layout.PCI_GSIS
            routes = [PciInterrupt(slot, pin, gsis[(slot + pin) % 4]) for slot in range(32) for pin in range(4)]
            write_mptable(memory, range(min(config.cpus, 255)), pci_interrupts=routes)
    return load(
        memory,
        config.kernel,
        cmdline=config.cmdline,
        modules=config.modules,
        e820=e820,
        rsdp=rsdp,
        flat=flat,
        fresh=fresh,
    )
