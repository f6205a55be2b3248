"""From exec to GRUB's menu on COM1, in the lab: our BIOS, SeaBIOS here, and SeaBIOS under QEMU.

GRUB enters protected mode, which wants the lab. Its own driver of the serial port writes the menu: the same bytes on
each firmware, for SeaBIOS' serial console, which pyvmm asks for and QEMU does not, has no part in them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from benchmarks import boot_disk
from benchmarks.boot_disk import QEMU, measure_until
from benchmarks.programs import CACHE
from tests.rig.boot_disks import GRUB, grub_disk

MENU: Final = b"GNU GRUB"
"""How the menu begins."""
MODULES: Final = ("terminfo", "serial", "terminal")
"""Of GRUB, beside those in the disk's core image, in the order in which they need each other."""
CONFIG: Final = (
    "".join(f"insmod /boot/{module}.mod\n" for module in MODULES)
    + """serial --unit=0 --speed=115200
terminal_output serial
set timeout=-1
menuentry "nothing" {
    reboot
}
"""
)
DISK: Final = CACHE / "bench" / "grub" / "disk.img"


def commands(disk: Path) -> dict[str, list[str]]:
    """The contenders' command lines, those of boot-disk; in the lab QEMU does without its patches of the guest."""
    made = boot_disk.commands(disk)
    made[QEMU] += ["-global", "kvm-apic.vapic=off"]  # see virtio.py
    return made


def make_disk(path: Path) -> None:
    """A disk whose GRUB shows its menu on COM1, and waits."""
    grub_disk(path, CONFIG, {f"{module}.mod": GRUB / f"{module}.mod" for module in MODULES})


def prepare() -> None:
    """The disk, made on the host."""
    shutil.rmtree(DISK.parent, ignore_errors=True)
    DISK.parent.mkdir(parents=True)
    make_disk(DISK)


def measure(rounds: int) -> str:
    return measure_until(MENU, commands(DISK), rounds, "GRUB's menu")
