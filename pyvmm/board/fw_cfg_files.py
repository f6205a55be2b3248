"""The files that a board's fw_cfg shows: what is on it, in the forms in which firmware of QEMU's machines reads it.

    etc/e820                   the memory map: RAM, and what lies outside of it and is taken (struct e820_entry)
    etc/acpi/*, table-loader   the tables of a direct boot (acpi/loader.py)
    etc/smbios/*               the SMBIOS table and its entry point (boot/smbios.py)
    bootorder                  disks as Open Firmware paths, in the order in which they were given
    etc/sercon-port            COM1: SeaBIOS shows there what it shows on the screen, and takes keys from it
    opt/*                      the user's

Source: QEMU docs/specs/fw_cfg, hw/i386/fw_cfg.c; SeaBIOS docs/Runtime_config.md, src/boot.c for the paths.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyvmm.acpi.build import build
from pyvmm.acpi.loader import loader_files
from pyvmm.board import layout
from pyvmm.boot.e820 import E820_TYPE_RAM, E820_TYPE_RESERVED
from pyvmm.boot.smbios import parse_smbios, smbios_table
from pyvmm.config import SEABIOS_FILE, ConfigError, FwCfgFile, MachineConfig
from pyvmm.devices.fw_cfg import check_name
from pyvmm.errors import printable
from pyvmm.pci.piix_ide import DRIVES_A_CHANNEL, PiixIde
from pyvmm.virtio.abi import VIRTIO_ID_BLOCK
from pyvmm.virtio.pci import VirtioPci

if TYPE_CHECKING:
    from pyvmm.acpi.platform import Platform
    from pyvmm.pci.host import PciHost

E820_FILE: Final = "etc/e820"
SMBIOS_ANCHOR_FILE: Final = "etc/smbios/smbios-anchor"
SMBIOS_TABLES_FILE: Final = "etc/smbios/smbios-tables"
BOOTORDER_FILE: Final = "bootorder"
SERCON_FILE: Final = "etc/sercon-port"
VGA_ROM: Final = "vgabios-isavga.bin"
VGA_ROM_FILE: Final = f"vgaroms/{VGA_ROM}"
USER_PREFIX: Final = "opt/"

_E820_ENTRY: Final = struct.Struct("<Q Q I")
_INTEGER: Final = struct.Struct("<Q")
"""What SeaBIOS' romfile_loadint() takes."""


class Told:
    """What the user tells the guest: files of fw_cfg, and what the SMBIOS table says. *config* is complete. Raises
    ConfigError."""

    def __init__(self, config: MachineConfig) -> None:
        self.files: dict[str, bytes] = {}
        for one in config.fw_cfg:
            try:
                self._add(one)
            except ValueError as error:
                raise ConfigError(str(error), {"fw_cfg": one.name}) from None
        try:
            self.smbios = parse_smbios(config.smbios)
            regions = ram_regions(config.ram_size)
            self.smbios_files = smbios_table(self.smbios, cpus=config.cpus, regions=regions, bios=False)
            """Entry point and table for firmware: made now, for a guest that reads them can be told of no mistake."""
        except ValueError as error:
            raise ConfigError(str(error), {"smbios": config.smbios}) from None
        if config.runs_seabios:
            self.files |= _vga_rom(config)

    def _add(self, one: FwCfgFile) -> None:
        check_name(one.name)
        if not one.name.startswith(USER_PREFIX):
            raise ValueError(f"the names of your files begin with {USER_PREFIX}")
        if one.name in self.files:
            raise ValueError("there are two of that name")
        assert isinstance(one.content, bytes)
        self.files[one.name] = one.content


def _vga_rom(config: MachineConfig) -> dict[str, bytes]:
    """SeaBIOS' BIOS of a VGA that is no PCI function, from where it is itself, or from where Debian has it."""
    _, _, file = (config.firmware or "").partition("=")
    beside = Path(file).with_name(VGA_ROM) if file else SEABIOS_FILE.with_name(VGA_ROM)
    path = beside if beside.exists() else SEABIOS_FILE.with_name(VGA_ROM)
    try:
        return {VGA_ROM_FILE: path.read_bytes()}
    except OSError as error:
        raise ConfigError(
            f"cannot read its VGA BIOS {printable(str(path))}: {error.strerror}: apt-get install seabios",
            {"firmware": config.firmware},
        ) from None


def firmware_files(
    platform: Platform, pci: PciHost, devices: Iterable[object], config: MachineConfig, told: Told
) -> dict[str, bytes]:
    """All files of a board with *platform*, whose user has plugged in *devices*."""
    anchor, tables = told.smbios_files
    return {
        E820_FILE: b"".join(_e820(platform, ram_regions(config.ram_size))),
        **loader_files(build(platform)),
        SMBIOS_ANCHOR_FILE: anchor,
        SMBIOS_TABLES_FILE: tables,
        SERCON_FILE: _INTEGER.pack(layout.COM1),
        **boot_order(pci, devices),
        **told.files,
    }


def ram_regions(size: int) -> list[tuple[int, int]]:
    """(gpa, bytes) of *size* bytes of RAM, with the VGA window as a PC counts it: in."""
    low = min(size, layout.HOLE_START)
    return [(0, low), *([(layout.HOLE_END, size - low)] if size > low else [])]


def _e820(platform: Platform, regions: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    for gpa, length in regions:
        yield _E820_ENTRY.pack(gpa, length, E820_TYPE_RAM)
    pci = platform.pci
    if pci is not None and pci.ecam is not None:
        yield _E820_ENTRY.pack(pci.ecam, pci.ecam_length, E820_TYPE_RESERVED)


def boot_order(pci: PciHost, devices: Iterable[object]) -> dict[str, bytes]:
    """The disks of *devices* as Open Firmware paths, the first to boot first; no file where there is none."""
    paths = [path for device in devices for path in _paths(pci, device)]
    return {BOOTORDER_FILE: "\n".join(paths).encode() + b"\0"} if paths else {}


def _paths(pci: PciHost, device: object) -> Iterator[str]:
    """/pci@i0cf8/pci-bridge@1c/scsi@0/disk@0,0, or ide@3/drive@1/disk@0: PCI functions by slot and function on their
    bus, ATA drives by channel and device."""
    for place, function in pci.parts():
        *bridges, last = (_unit(part) for part in place.split("/"))
        above = "/pci@i0cf8/" + "".join(f"pci-bridge@{bridge}/" for bridge in bridges)
        if (
            isinstance(function, VirtioPci)
            and function.device is device
            and function.device.device_id == VIRTIO_ID_BLOCK
        ):
            yield f"{above}scsi@{last}/disk@0,0"
        elif isinstance(function, PiixIde) and device in function.disks:
            channel, unit = divmod(function.disks.index(device), DRIVES_A_CHANNEL)
            yield f"{above}ide@{last}/drive@{channel}/disk@{unit}"


def _unit(place: str) -> str:
    """0a.1 as a,1, and 0a.0 as a."""
    slot, function = (int(number, 16) for number in place.split("."))
    return f"{slot:x},{function}" if function else f"{slot:x}"
