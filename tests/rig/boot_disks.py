"""Disks that boot by themselves: a file system and a boot loader of Debian's."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

SECTOR: Final = 512
MIB: Final = 1 << 20
START: Final = MIB
"""Where the one partition of a disk with an ext2 begins: a boot loader may have what is before it."""
GRUB: Final = Path("/usr/lib/grub/i386-pc")
"""Of Debian's grub-pc-bin."""
EXTLINUX_MBR: Final = Path("/usr/lib/EXTLINUX/mbr.bin")
"""Of Debian's extlinux."""
ISOLINUX: Final = Path("/usr/lib/ISOLINUX")
SYSLINUX_MODULES: Final = Path("/usr/lib/syslinux/modules/bios")
"""Of Debian's isolinux and syslinux-common."""
BLOCK: Final = 64 << 10
"""Bytes of a partition that are copied at a time."""
CODE: Final = 440
"""Bytes of an MBR that are code."""
GRUB_MODULES: Final = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "echo", "sleep", "reboot", "minicmd")
LINUX: Final = 0x83
ACTIVE: Final = 0x80


def run(*command: str | Path) -> None:
    """A program of Debian's; the test fails where it does, or is missing."""
    try:
        done = subprocess.run(command, text=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        pytest.fail(f"{command[0]} is missing: scripts/test installs it")
    assert done.returncode == 0, done.stdout


def grub_disk(path: Path, config: str, files: dict[str, Path]) -> Path:
    """A disk that GRUB boots as *config*, its grub.cfg, says; *files* are in /boot by name."""
    tree = _tree(path, files)
    (tree / "boot" / "grub").mkdir()
    (tree / "boot" / "grub" / "grub.cfg").write_text(config)
    partition = path.with_suffix(".ext2")
    _ext2(tree, partition)
    return grub_before(path, partition)


def grub_before(path: Path, partition: Path) -> Path:
    """A disk that GRUB boots as /boot/grub/grub.cfg of *partition*, the image of an ext2 or ext4, says."""
    core = path.with_suffix(".core")
    run("grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o", core, *GRUB_MODULES)
    image = bytearray(core.read_bytes())
    # The last entry of the list of blocks that its first sector loads: all others of it, from the next sector on.
    struct.pack_into("<QHH", image, SECTOR - 12, 2, -(-len(image) // SECTOR) - 1, 0x820)
    assert len(image) < START - SECTOR
    _assemble(path, (GRUB / "boot.img").read_bytes(), bytes(image), partition)
    return path


def extlinux_disk(path: Path, config: str, files: dict[str, Path]) -> Path:
    """A disk that extlinux boots as *config*, its extlinux.conf, says; *files* are in /boot by name. For root."""
    tree = _tree(path, files)
    (tree / "boot" / "extlinux.conf").write_text(config)
    partition = path.with_suffix(".ext2")
    _ext2(tree, partition)
    with mounted(partition, path.with_suffix(".mnt")) as directory:
        run("extlinux", "--install", directory / "boot")
    _assemble(path, EXTLINUX_MBR.read_bytes(), b"", partition)
    return path


@contextmanager
def mounted(image: Path, directory: Path) -> Iterator[Path]:
    directory.mkdir()
    run("mount", "-o", "loop", image, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


def _tree(path: Path, files: dict[str, Path]) -> Path:
    tree = path.with_suffix(".tree")
    (tree / "boot").mkdir(parents=True)
    for name, file in files.items():
        shutil.copy(file, tree / "boot" / name)
    return tree


def _ext2(tree: Path, image: Path) -> None:
    """With room for a boot loader beside what *tree* has."""
    size = sum(file.stat().st_size for file in tree.rglob("*") if file.is_file())
    run("mke2fs", "-q", "-t", "ext2", "-b", "1024", "-d", tree, image, f"{size // MIB + 8}M")


def _assemble(path: Path, mbr: bytes, behind: bytes, partition: Path) -> None:
    """The MBR's code, what comes *behind* it, and the partition."""
    sectors = partition.stat().st_size // SECTOR
    with path.open("wb") as disk:
        disk.write(mbr[:CODE].ljust(446, b"\0"))
        # Addresses in cylinders, heads and sectors are not for disks of today: 0xFE 0xFF 0xFF.
        disk.write(struct.pack("<B3sB3sII", ACTIVE, b"\xfe\xff\xff", LINUX, b"\xfe\xff\xff", START // SECTOR, sectors))
        disk.write(bytes(48) + b"\x55\xaa" + behind)
        disk.seek(START)
        with partition.open("rb") as source:
            while block := source.read(BLOCK):
                # What is empty stays a hole, as mke2fs leaves it.
                disk.seek(len(block), os.SEEK_CUR) if not any(block) else disk.write(block)
        disk.truncate(START + sectors * SECTOR)


def hybrid_iso(path: Path, config: str, files: dict[str, Path]) -> Path:
    """An ISO that isolinux boots, as a disk too, as *config*, its isolinux.cfg, says; *files* are in /boot by name."""
    tree = _tree(path, files)
    (tree / "isolinux").mkdir()
    (tree / "isolinux" / "isolinux.cfg").write_text(config)
    for file in (ISOLINUX / "isolinux.bin", SYSLINUX_MODULES / "ldlinux.c32"):
        try:
            shutil.copy(file, tree / "isolinux")
        except FileNotFoundError:
            pytest.fail(f"{file} is missing: scripts/test installs it")
    words = ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    words += ["-boot-info-table", "-isohybrid-mbr", str(ISOLINUX / "isohdpfx.bin")]
    run("xorriso", "-as", "mkisofs", "-quiet", "-o", path, *words, tree)
    return path


if __name__ == "__main__":
    # scripts/guest-images makes a disk of the partition that it has made.
    grub_before(Path(sys.argv[2]), Path(sys.argv[1]))
