"""Which boot protocol a file speaks, by its bytes; and what a file is that speaks none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvmm.boot.bzimage import HEADER_MAGIC
from pyvmm.boot.compressed import compression
from pyvmm.boot.elf import ELF_MAGIC, parse_elf
from pyvmm.boot.error import BootError
from pyvmm.boot.multiboot import (
    MULTIBOOT_AOUT_KLUDGE,
    MULTIBOOT_HEADER_MAGIC,
    MULTIBOOT_SEARCH,
    find_header,
    find_multiboot_header,
)
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.boot.image import Image

BZIMAGE: Final = "bzImage"
PVH: Final = "PVH"
MULTIBOOT: Final = "Multiboot"

MULTIBOOT2_HEADER_MAGIC: Final = 0xE85250D6
"""Multiboot2 Specification 2.0, 3.1.1: then architecture, header length and checksum, 8-byte aligned."""

_TEXT: Final = b"\t\n\f\r\x1b" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
_KERNEL_WANTED: Final = "give a bzImage, an ELF kernel with a PVH note or a Multiboot kernel"
_OTHER: Final = (
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"conectix", "a VHD disk image"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"\x45\x3d\xcd\x28", "a cramfs file system"),
    (0, b"070701", "a cpio archive, an initrd perhaps"),
    (0, b"070702", "a cpio archive, an initrd perhaps"),
    (0, b"\xc7\x71", "a cpio archive, an initrd perhaps"),
    (257, b"ustar", "a tar archive"),
    (0, b"!<arch>\n", "an ar archive or a Debian package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a flattened device tree"),
    (0x38, b"ARM\x64", "an arm64 kernel"),
    (0x24, b"\x18\x28\x6f\x01", "an ARM kernel"),
    (0x38, b"RSC\x05", "a RISC-V kernel"),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (0, b"#!", "a script"),
)


def detect(image: Image) -> str:
    """BZIMAGE, PVH or MULTIBOOT; raises BootError that says what else the file is.

    A kernel that has both a PVH note and a Multiboot header is taken as PVH, which tells it more.
    """
    head = image.read(0, MULTIBOOT_SEARCH)
    if head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == HEADER_MAGIC:
        return BZIMAGE
    header = find_multiboot_header(head)
    # With flag 16 the Multiboot header overrules whatever ELF header the file has, a broken one too.
    if head[:4] == ELF_MAGIC and not (header and header.flags & MULTIBOOT_AOUT_KLUDGE):
        if parse_elf(image).pvh_entry is not None:
            return PVH
        if header is None:
            why = _out_of_place(image) or (
                "an ELF file without PVH note or Multiboot header: give the bzImage, or build Linux with CONFIG_PVH"
            )
            raise BootError(f"{image.name}: {why}")
    if header is not None:
        return MULTIBOOT
    raise BootError(f"{image.name}: {_describe(image, head)}")


def _out_of_place(image: Image) -> str:
    """What is the matter with the Multiboot header of a file that has none where a loader looks; empty if it has none
    anywhere."""
    data = image.read(0, MIB)
    if header := find_header(data, MULTIBOOT_HEADER_MAGIC, 12, 4):
        return (
            f"its Multiboot header is at {header.offset:#x} of the file, where no loader looks: link it into the first "
            f"{MULTIBOOT_SEARCH >> 10} KiB"
        )
    if find_header(data, MULTIBOOT2_HEADER_MAGIC, 16, 8):
        return "a kernel for Multiboot 2 only, which is not known here: give it a Multiboot 1 header or a PVH note too"
    return ""


def _describe(image: Image, head: bytes) -> str:
    if name := compression(head):
        return f"a {name} file: unpack it first; {_KERNEL_WANTED}"
    for offset, magic, name in _OTHER:
        if image.read(offset, len(magic)) == magic:
            return f"{name}, no kernel for a PC: {_KERNEL_WANTED}"
    tail = head[0x202:0x206]
    if head[0x1FE:0x200] == b"\x55\xaa" and len(tail) < 4 and HEADER_MAGIC.startswith(tail):
        return f"a bzImage or a boot sector, cut off after {len(head)} bytes: get the file again"
    if head[:2] == b"MZ":
        return f"a PE program (for EFI or Windows) with no Linux header: {_KERNEL_WANTED}"
    if head[0x1FE:0x200] == b"\x55\xaa":
        return f"a boot sector or a disk image, no kernel: {_KERNEL_WANTED}"
    if why := _out_of_place(image):
        return why
    kind = "no kernel format that is known" if head.translate(None, _TEXT) else "a text file"
    size = f"{image.size} bytes" if image.size < 4096 else f"{image.size >> 10} KiB"
    return f"{kind} ({size}): {_KERNEL_WANTED}; for a flat binary say so"
