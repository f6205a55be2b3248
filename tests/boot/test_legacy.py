"""Devices for guests without virtio, under Debian's generic kernel: ATA disks by PIO and by DMA, and an NE2000."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.pci.ne2000 import Ne2000
from tests.rig.guest import USERSPACE, Guest, irq_counts
from tests.rig.lab import GENERIC_KERNEL, INITRAMFS_LEGACY
from tests.rig.net_driver import OneWire, PeerWire, SocketPeer
from tests.rig.plugging import WAIT, flat, unplug

KIB, MIB = 1 << 10, 1 << 20
SOME = f"head -c {256 * KIB} /dev/base"
"""What PIO reads in the lab in some ten seconds."""
SIZES = {"49152": "kept", "8192": "base", "10": "fixed"}
"""Of the disks, in sectors."""


def ext4(directory: Path, image: Path, size: int) -> dict[str, str]:
    """Make *image* with files of chance on an ext4; their checksums by name."""
    tree = directory / "tree"
    tree.mkdir()
    sums = {}
    for number, length in enumerate((0, 1, 511, 4096, 100_000, 600_000)):
        data = os.urandom(length)
        (tree / f"file{number}").write_bytes(data)
        sums[f"file{number}"] = hashlib.md5(data).hexdigest()
    (tree / "sums").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, f"{size // MIB}M"], check=True)
    return sums


class Linux(Guest):
    """/dev/kept has a file system, /dev/base is temporary, /dev/fixed, on the other cable, read-only; no driver yet."""

    def __init__(self, directory: Path) -> None:
        self.kept, self.base, self.fixed = (directory / name for name in ("kept.img", "base.img", "fixed.img"))
        self.sums = ext4(directory, self.kept, 24 * MIB)
        self.base.write_bytes(bytes(range(256)) * (4 * MIB // 256))
        self.fixed.write_bytes(b"fixed" * 1000)
        self.wire = PeerWire()
        self.written = ""
        """What the first test has left on /dev/base."""
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
                    Ne2000("user", OneWire(self.wire), mac="52:54:00:12:34:56"),
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
        # Which of them is sda is chance.
        for size, name in SIZES.items():
            self.shell(f"ln -sf $(basename $(dirname $(grep -lx {size} /sys/block/sd?/size))) /dev/{name}")

    def unload(self) -> None:
        self.shell("rmmod ata_piix && rmmod libata")

    def modes(self) -> list[str]:
        """How Linux moves data, of each disk; where there is none, it says XFER_PIO_SLOW."""
        return self.shell("for file in /sys/class/ata_device/*/xfer_mode; do grep -v SLOW $file; done; true").split()

    def md5(self, text: str) -> str:
        """Of what the guest reads now, with nothing of it cached."""
        self.shell("echo 3 >/proc/sys/vm/drop_caches")
        return self.shell(f"{text} | md5sum").split()[0]

    def check_files(self) -> None:
        self.shell("mount -t ext4 /dev/kept /mnt && cd /mnt && md5sum -c -s sums; cd / && umount /mnt")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    with Linux(tmp_path_factory.mktemp("disks")) as guest:
        yield guest


def test_linux_finds_the_disks_and_reads_by_pio(guest: Linux) -> None:
    guest.load("dma=0")
    assert guest.shell("basename $(readlink /sys/bus/pci/devices/0000:00:01.0/driver)").strip() == "ata_piix"
    assert sorted(guest.shell("cat /sys/block/sd?/size").split()) == sorted(SIZES)
    assert guest.shell("cat /sys/block/sda/device/model").strip() == "pyvmm disk"
    assert guest.modes() == ["XFER_PIO_4"] * 3
    guest.check_files()
    assert guest.md5(SOME) == hashlib.md5(guest.base.read_bytes()[: 256 * KIB]).hexdigest()
    assert guest.shell("head -c 5000 /dev/fixed | md5sum").split()[0] == hashlib.md5(b"fixed" * 1000).hexdigest()
    guest.shell("dd if=/dev/zero of=/dev/fixed bs=512 count=1 conv=fsync,notrunc 2>/dev/null", status=1)
    guest.shell("dd if=/dev/urandom of=/dev/base bs=4k seek=3 count=4 conv=fsync,notrunc 2>/dev/null")
    guest.written = guest.md5(SOME)
    assert guest.written != hashlib.md5(guest.base.read_bytes()[: 256 * KIB]).hexdigest()
    assert guest.base.read_bytes() == bytes(range(256)) * (4 * MIB // 256)


def test_by_dma_too_and_what_was_written_is_in_the_file(guest: Linux, tmp_path: Path) -> None:
    guest.unload()
    guest.load()
    assert guest.modes() == ["XFER_MW_DMA_2"] * 3
    assert guest.md5(SOME) == guest.written
    guest.check_files()
    guest.shell(
        "mount -t ext4 /dev/kept /mnt && dd if=/dev/urandom of=/mnt/new bs=64k count=64 2>/dev/null && cd /mnt && "
        "md5sum new >>sums; cd / && umount /mnt"
    )
    guest.check_files()
    counts = irq_counts(guest.shell("cat /proc/interrupts"))
    assert counts["14"][0] > 50 and counts["15"][0] > 0
    sums = guest.shell("mount -t ext4 /dev/kept /mnt; cat /mnt/sums; umount /mnt")
    assert subprocess.run(["e2fsck", "-fn", guest.kept], capture_output=True).returncode == 0
    subprocess.run(["debugfs", "-R", f"dump new {tmp_path / 'new'}", guest.kept], check=True, capture_output=True)
    assert hashlib.md5((tmp_path / "new").read_bytes()).hexdigest() in sums
    assert guest.shell("dmesg | grep -e timeout -e frozen -e 'lost interrupt'; true") == ""


def test_a_snapshot_in_the_middle_of_a_transfer(guest: Linux) -> None:
    before = guest.md5("cat /dev/base")
    write = "dd if=/dev/urandom of=/dev/base bs=64k count=64 conv=notrunc,fsync 2>/dev/null"
    guest.send(f"echo Beg''ins; {write}; echo Writ''ten $?\n")
    guest.expect("Begins\r\n")
    snapshot = guest.machine.snapshot()
    guest.expect("Written 0\r\n")
    guest.machine.restore(snapshot)
    guest.expect("Written 0\r\n")
    guest.expect("# ")
    assert guest.md5("cat /dev/base") != before
    assert guest.base.read_bytes() == bytes(range(256)) * (4 * MIB // 256)


def test_an_ne2000_pings(guest: Linux) -> None:
    assert guest.shell("basename $(readlink /sys/bus/pci/devices/0000:00:02.0/driver)").strip() == "ne2k-pci"
    assert guest.shell("cat /sys/class/net/eth0/address").strip() == "52:54:00:12:34:56"
    guest.shell("ip link set lo up; ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up")
    for size in (56, 1400, 9000):  # the last is seven frames a packet, more than the ring has room for
        assert "3 packets received, 0% packet loss" in guest.shell(f"ping -c 3 -s {size} 10.0.0.1")
    assert guest.wire.sent > 30 and guest.wire.received > 27
    errors = guest.shell("cd /sys/class/net/eth0/statistics; cat rx_errors tx_errors rx_over_errors rx_dropped; cd /")
    assert errors.split() == ["0"] * 4
    assert irq_counts(guest.shell("cat /proc/interrupts"))["eth0"][0] >= 18, "one each way at least"


def test_an_ne2000_that_is_plugged_in_pings(guest: Linux, tmp_path: Path) -> None:
    guest.load()
    wire = tmp_path / "wire"

    def round_trip() -> None:
        with SocketPeer(wire) as peer:
            guest.machine.plug(f"ne2k,to=socket:{wire},id=ne")
            guest.shell(f"{WAIT.format('[ -e /sys/class/net/eth1 ]')}; ip addr add 10.0.1.2/24 dev eth1")
            guest.shell("ip link set eth1 up && ping -c 2 -w 30 10.0.1.1 >/dev/null")
            assert peer.sent >= 3, "ARP and the echoes"
            unplug(guest, "ne")
        guest.shell("[ ! -e /sys/class/net/eth1 ]")

    flat(guest, round_trip)
