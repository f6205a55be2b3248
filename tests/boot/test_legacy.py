"""Devices for guests without virtio, under Debian's generic kernel: ATA disks by PIO and by DMA, and an NE2000."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from tests.rig.guest import USERSPACE, Guest, irq_counts
from tests.rig.lab import GENERIC_KERNEL, INITRAMFS_LEGACY

MIB = 1 << 20


def ext4(directory: Path, image: Path, size: int) -> dict[str, str]:
    """Make *image* with files of chance on an ext4; their checksums by name."""
    tree = directory / "tree"
    tree.mkdir()
    sums = {}
    for number, length in enumerate((0, 1, 511, 4096, 100_000, 3 * MIB)):
        data = os.urandom(length)
        (tree / f"file{number}").write_bytes(data)
        sums[f"file{number}"] = hashlib.md5(data).hexdigest()
    (tree / "sums").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, f"{size // MIB}M"], check=True)
    return sums


class Linux(Guest):
    """sda has a file system, sdb is temporary, sdc, on the other cable, read-only. No driver is loaded yet."""

    def __init__(self, directory: Path) -> None:
        self.kept, self.base, self.fixed = (directory / name for name in ("kept.img", "base.img", "fixed.img"))
        self.sums = ext4(directory, self.kept, 24 * MIB)
        self.base.write_bytes(bytes(range(256)) * (4 * MIB // 256))
        self.fixed.write_bytes(b"fixed" * 1000)
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                kernel=GENERIC_KERNEL,
                initrd=INITRAMFS_LEGACY,
                cmdline="console=ttyS0 quiet pyvmm.modules=none",
                virtio_input="none",
                devices=(
                    f"ata-disk,path={self.kept},serial=kept by the host",
                    f"ata-disk,path={self.base},temporary",
                    f"ata-disk,path={self.fixed},readonly",
                ),
            )
        )
        self.expect(USERSPACE)
        self.expect("# ")

    def load(self, *words: str) -> None:
        """Load all drivers that are not loaded, libata with its parameters *words*."""
        self.shell(
            "for file in /lib/modules/*.ko; do case $file in "
            f"*-libata.ko) insmod $file {' '.join(words)};; *) insmod $file;; esac; done 2>/dev/null; true"
        )
        self.until(lambda: "sdc" in self.shell("ls /sys/block"), "the disks")

    def unload(self) -> None:
        self.shell("rmmod ata_piix && rmmod libata")

    def md5(self, text: str) -> str:
        """Of what the guest reads now, with nothing of it cached."""
        self.shell("echo 3 >/proc/sys/vm/drop_caches")
        return self.shell(f"{text} | md5sum").split()[0]

    def check_files(self) -> None:
        self.shell("mount -t ext4 /dev/sda /mnt && cd /mnt && md5sum -c -s sums; cd / && umount /mnt")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    with Linux(tmp_path_factory.mktemp("disks")) as guest:
        yield guest


def test_linux_finds_the_disks_and_reads_by_pio(guest: Linux) -> None:
    guest.load("dma=0")
    assert guest.shell("basename $(readlink /sys/bus/pci/devices/0000:00:01.0/driver)").strip() == "ata_piix"
    sizes = [guest.shell(f"cat /sys/block/{disk}/size").strip() for disk in ("sda", "sdb", "sdc")]
    assert sizes == ["49152", "8192", "10"]
    assert guest.shell("cat /sys/block/sda/device/model").strip() == "pyvmm disk"
    log = guest.shell("dmesg")
    assert log.count("configured for PIO") == 3
    guest.check_files()
    assert guest.md5("cat /dev/sdb") == hashlib.md5(guest.base.read_bytes()).hexdigest()
    assert guest.shell("head -c 5000 /dev/sdc | md5sum").split()[0] == hashlib.md5(b"fixed" * 1000).hexdigest()
    assert guest.shell("dd if=/dev/zero of=/dev/sdc bs=512 count=1 conv=fsync 2>/dev/null", status=1) == ""
    written = guest.md5(
        "dd if=/dev/urandom of=/dev/sdb bs=64k seek=3 count=4 conv=notrunc,fsync 2>/dev/null; cat /dev/sdb"
    )
    guest.unload()
    guest.load()
    assert guest.md5("cat /dev/sdb") == written
    assert guest.base.read_bytes() == bytes(range(256)) * (4 * MIB // 256)


def test_by_dma_too_and_what_was_written_is_in_the_file(guest: Linux, tmp_path: Path) -> None:
    log = guest.shell("dmesg")
    assert log.count("configured for MWDMA2") == 3
    guest.check_files()
    guest.shell(
        "mount -t ext4 /dev/sda /mnt && dd if=/dev/urandom of=/mnt/new bs=64k count=64 2>/dev/null && cd /mnt && "
        "md5sum new >>sums; cd / && umount /mnt"
    )
    guest.check_files()
    counts = irq_counts(guest.shell("cat /proc/interrupts"))
    assert counts["14"][0] > 50 and counts["15"][0] > 0
    sums = guest.shell("mount -t ext4 /dev/sda /mnt; cat /mnt/sums; umount /mnt")
    assert subprocess.run(["e2fsck", "-fn", guest.kept], capture_output=True).returncode == 0
    subprocess.run(["debugfs", "-R", f"dump new {tmp_path / 'new'}", guest.kept], check=True, capture_output=True)
    assert hashlib.md5((tmp_path / "new").read_bytes()).hexdigest() in sums
    assert " 0 " in guest.shell("dmesg | grep -c 'exception Emask' | sed 's/.*/ & /'", status=None)


def test_a_snapshot_in_the_middle_of_a_transfer(guest: Linux) -> None:
    before = guest.md5("cat /dev/sdb")
    guest.send("dd if=/dev/urandom of=/dev/sdb bs=64k conv=notrunc,fsync; echo Written\n")
    snapshot = guest.machine.snapshot()
    guest.expect("Written\r\n")
    guest.machine.restore(snapshot)
    guest.expect("Written\r\n")
    guest.expect("# ")
    assert guest.md5("cat /dev/sdb") != before
    assert guest.base.read_bytes() == bytes(range(256)) * (4 * MIB // 256)
