"""What a machine boots: a kernel of the user's with the tables that it will look for, a firmware, or a guest that comes
with pyvmm.

It is loaded at the first start and at every reset again, from its path; what came from a pipe is kept. The first time
RAM is zero.
"""

from __future__ import annotations

from dataclasses import replace

from pyvmm import guests
from pyvmm.board import layout
from pyvmm.board.bios import write_bios_areas
from pyvmm.board.pc import Pc
from pyvmm.board.rom import FirmwareRom
from pyvmm.boot.e820 import E820_TYPE_RESERVED, E820Entry, e820_map
from pyvmm.boot.entry import CpuState, long_mode, protected_mode, real_mode, reset_vector
from pyvmm.boot.flat import Flat
from pyvmm.boot.image import Source, kept
from pyvmm.boot.no_bios import BIOS_SEGMENT, ENDS
from pyvmm.config import ConfigError, MachineConfig
from pyvmm.irq import swizzle
from pyvmm.machine.firmware import BIOS, read_firmware
from pyvmm.memory import GuestMemory

REAL_MODE_STACK = 0x7000
STACK = 0x80000


class Payload:
    """What *config* names; raises UserError, and so does load()."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        self._kernel = None if config.kernel is None else kept(config.kernel)
        self._firmware = None if config.firmware is None else read_firmware(config.firmware)
        self._rom: FirmwareRom | None = None
        self._modules = tuple(replace(module, file=kept(module.file, "initrd")) for module in config.modules)

    def load(self, board: Pc, *, fresh: bool) -> CpuState:
        """Put it into RAM with what a BIOS leaves, and say how the boot CPU starts; *fresh* RAM is zero."""
        rom = self.map_rom(board.memory)
        if rom is not None:
            return self._load_firmware(rom, board)
        write_bios_areas(board.memory)
        if self._kernel is None:
            return _load_guest(self._config, board)
        return self._load_kernel(self._kernel, board, fresh)

    def map_rom(self, memory: GuestMemory) -> FirmwareRom | None:
        """What of it is not in RAM, and so in no snapshot: a firmware's ROM, once and for good. None without one."""
        if self._rom is None and self._firmware is not None:
            self._rom = FirmwareRom(memory, self._firmware, self._config.firmware or "")
        return self._rom

    def _load_firmware(self, rom: FirmwareRom, board: Pc) -> CpuState:
        """Its copy below 1 MiB; a reset changes nothing else in RAM. Ours finds the tables there."""
        shadow = rom.shadow()
        if self._config.firmware == BIOS:
            _install_tables(board, shadow)
        return reset_vector()

    def _load_kernel(self, kernel: Source, board: Pc, fresh: bool) -> CpuState:
        """The kernel and its modules; with ACPI tables and MP table unless it is a flat binary that asks for none."""
        from pyvmm.boot.load import load as load_image  # a guest that comes with pyvmm starts sooner without

        config, memory = self._config, board.memory
        flat = Flat.parse(config.flat) if config.flat else None
        reserved = ((layout.ECAM_START, layout.ECAM_SIZE), (layout.ACPI_TABLES, layout.ACPI_TABLES_SIZE))
        # Memory that was plugged in is not in the map: an OS finds it by ACPI, and can let go of it again.
        e820 = e820_map(board.ram.bounds, [E820Entry(*where, E820_TYPE_RESERVED) for where in reserved])
        rsdp = 0
        if flat is None or flat.mode == "linux32":
            rsdp = _install_tables(board, (BIOS_SEGMENT << 4) + ENDS)
        return load_image(
            memory,
            kernel,
            cmdline=config.cmdline,
            modules=self._modules,
            e820=e820,
            rsdp=rsdp,
            flat=flat,
            fresh=fresh,
        )


def _install_tables(board: Pc, limit: int) -> int:
    """Write ACPI tables, MP table and SMBIOS table to where an OS looks for them, all below *limit*; the address of the
    RSDP. Raises ConfigError."""
    from pyvmm.acpi.build import build
    from pyvmm.acpi.platform import PCI_DEVICES, PCI_PINS
    from pyvmm.boot.lowmem import MPTABLE_GPA
    from pyvmm.boot.mptable import MAX_APIC_ID, PciInterrupt, write_mptable

    platform = board.platform()
    rsdp = build(platform).install(board.memory, layout.ACPI_TABLES)
    end = MPTABLE_GPA
    if platform.apic is not None:
        routes = [
            PciInterrupt(slot, pin, layout.PCI_GSIS[swizzle(slot, pin)])
            for slot in range(PCI_DEVICES)
            for pin in range(PCI_PINS)
        ]
        cpus = [cpu for cpu in board.sockets.present if cpu <= MAX_APIC_ID]
        end = write_mptable(board.memory, cpus, pci_interrupts=routes)
    _write_smbios(board, end, limit)
    return rsdp


def _write_smbios(board: Pc, gpa: int, limit: int) -> None:
    """Write the SMBIOS table and its entry point to [gpa, limit), behind the MP table. Raises ConfigError."""
    from pyvmm.board.fw_cfg_files import ram_regions
    from pyvmm.boot.smbios import smbios_table, write_smbios

    config = board.config
    try:
        table = smbios_table(board.told.smbios, cpus=config.cpus, regions=ram_regions(config.ram_size))
        write_smbios(board.memory, gpa, limit, *table)
    except ValueError as error:
        raise ConfigError(str(error), {"smbios": config.smbios}) from None


def _load_guest(config: MachineConfig, board: Pc) -> CpuState:
    """The guest that *config* names, or the default one."""
    memory = board.memory
    name = guests.DEFAULT if config.guest is None else config.guest
    guest = guests.load(name).with_parameters(**dict(config.guest_parameters))
    if guest.memory > config.ram_size:
        raise ConfigError(
            f"guest {guest.name} needs {guest.memory >> 10} KiB: give it that", {"memory": config.ram_size}
        )
    if guest.tables == "acpi":
        _install_tables(board, (BIOS_SEGMENT << 4) + ENDS)
    memory.write(guest.address, guest.image)
    if guest.mode == "real":
        return real_mode(0, guest.entry, sp=REAL_MODE_STACK)
    if guest.mode == "protected":
        return protected_mode(memory, guest.entry, esp=STACK)
    return long_mode(memory, guest.entry, rsp=STACK)
