"""Disks under a current Linux: what it finds, what it writes and reads again, what the host's file has of it."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest

from pyvmm.backends.disks import Disks
from pyvmm.boot.cpio import Archive
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.event import MachineEvent
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_CLOUD

MIB = 1 << 20
BASE = 8 * MIB
"""Bytes of vdb, and of what pieces are written to."""
CACHES = {"vda": "writeback", "vde": "none", "vdf": "unsafe"}
"""The disks that are files which the host keeps."""
SWITCH = """#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for file in /lib/modules/*.ko; do
    insmod "$file"
done
mount -t ext4 /dev/vdg /mnt
umount -l /dev
umount -l /proc
exec switch_root /mnt /init
"""
"""The first process of an initial ramdisk that only leads to the root file system."""
SUMS = "find . -type f ! -name sums ! -name log | sort | xargs md5sum"
SCRIPTS = {
    "make": f"""set -e
mkfs.ext4 -q /dev/$1
mount -t ext4 /dev/$1 /mnt
cp -a /bin/busybox /lib/modules /init /mnt
cd /mnt
{SUMS} >/tmp/sums
cp /tmp/sums .
cd /
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/$1 /mnt
cd /mnt
md5sum -c -s /tmp/sums
cd /
umount /mnt
""",
    "check": """set -e
mount -t ext4 /dev/$1 /mnt
cd /mnt
md5sum -c -s sums
echo more >>log
cd /
umount /mnt
""",
    "load": """i=0
while [ $i -lt 14 ]; do
    i=$((i+1))
    dd if=/tmp/piece of=/dev/vdb bs=64k seek=$((i*5)) conv=notrunc,fsync 2>/dev/null
    dd if=/dev/vdb iflag=direct bs=64k skip=$((i*5)) count=4 2>/dev/null | cmp -s - /tmp/piece || echo bad $i
    echo $i
done >/tmp/log
touch /tmp/finished
""",
    "sums": """echo 3 >/proc/sys/vm/drop_caches
for i in $(seq 14); do
    dd if=/dev/vdb bs=64k skip=$((i*5)) count=4 2>/dev/null | md5sum
done
""",
}
"""What the guest is to do, in /root: to type it all on COM1 takes longer than the rest."""


def root_image(image: Path, work: Path, scripts: dict[str, str]) -> None:
    """A file system of ext4 with what the initial ramdisk has, mkfs.ext4, and *scripts* in /root."""
    work.mkdir()
    subprocess.run(f"gzip -dc {INITRAMFS_CLOUD} | cpio -idm --quiet", shell=True, check=True, cwd=work)
    program = which("mke2fs") or "/sbin/mke2fs"
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    subprocess.run(["cp", "-L", "--parents", *re.findall(r"/\S+", listed), work], check=True)
    subprocess.run(["cp", "-L", program, work / "bin/mkfs.ext4"], check=True)
    (work / "etc/mtab").symlink_to("/proc/mounts")
    for name, text in scripts.items():
        (work / "root" / name).write_text(text)
    subprocess.run([program, "-q", "-t", "ext4", "-d", work, image, "32M"], check=True)


@dataclass
class Pieces:
    """Writes to random places, of random sizes, four at a time and past the guest's cache."""

    script: str
    written: list[tuple[int, int, int]]
    """Where, from where of vdb, how many bytes."""

    @classmethod
    def of(cls, disk: str, dice: random.Random) -> Pieces:
        lines = [
            "p() {",
            f"    dd if=/dev/vdb iflag=skip_bytes skip=$1 of=/dev/{disk} oflag=direct,seek_bytes seek=$2 bs=$3 count=1 "
            "conv=notrunc 2>/dev/null",
            "}",
        ]
        written = []
        for _ in range(3):
            line = ""
            for room in dice.sample(range(BASE // (256 << 10)), 4):  # each in 256 KiB of its own
                count = dice.choice((1, 2, 7, 8, 31, 128, 256, 512))
                to, at = 512 * room + dice.randrange(513 - count), dice.randrange(BASE // 512 - count)
                written.append((512 * to, 512 * at, 512 * count))
                line += f"p {512 * at} {512 * to} {512 * count} & "
            lines.append(line + "wait")
        return cls("\n".join([*lines, "sync\n"]), written)


class Linux(Guest):
    """Two processors, the root file system on vdg, and disks of each kind:

    vda, vde, vdf   CACHES         vdb   temporary, with two queues, of random bytes
    vdc   read-only                vdd   a block device of the host
    vdg   temporary                vdh   larger than what the host has for it
    """

    def __init__(self, directory: Path, device: Path, small: Path) -> None:
        names = ("kept.img", "direct.img", "unsafe.img", "base.img", "fixed.img", "root.img")
        kept, direct, unsafe, self.base, self.fixed, root = (directory / name for name in names)
        self.files = {"vda": kept, "vde": direct, "vdf": unsafe}
        self.kept = kept
        self.content = random.Random(1).randbytes(BASE)
        self.base.write_bytes(self.content)
        self.fixed.write_bytes(b"fixed" * 1000)
        dice = random.Random(2)
        self.pieces = {disk: Pieces.of(disk, dice) for disk in self.files}
        pieces = {f"pieces-{disk}": pieces.script for disk, pieces in self.pieces.items()}
        root_image(root, directory / "root", SCRIPTS | pieces)
        archive = Archive()
        archive.file("/switch", SWITCH.encode(), 0o755)
        initrd = directory / "initrd"
        data = INITRAMFS_CLOUD.read_bytes()
        initrd.write_bytes(data + bytes(-len(data) % 4) + bytes(archive))
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                cpus=2,
                kernel=CLOUD_KERNEL,
                initrd=initrd,
                cmdline="console=ttyS0 quiet rdinit=/switch pyvmm.modules=none",
                devices=(
                    f"virtio-blk,path={kept},size=32M,serial=kept-by-the-host",
                    f"virtio-blk,path={self.base},temporary,queues=2",
                    f"virtio-blk,path={self.fixed},readonly",
                    f"virtio-blk,path={device},cache=none",
                    f"virtio-blk,path={direct},size=32M,cache=none",
                    f"virtio-blk,path={unsafe},size=32M,cache=unsafe",
                    f"virtio-blk,path={root},temporary",
                    f"virtio-blk,path={small}/full.img,size=16M",
                ),
            )
        )
        self.booted()

    def booted(self) -> None:
        self.expect(USERSPACE)
        self.expect("# ")

    def queue(self, disk: str, name: str) -> str:
        """What Linux knows of a disk."""
        return self.shell(f"cat /sys/block/{disk}/{name}").strip()

    def md5(self, text: str) -> str:
        """Of what the guest reads now, with nothing of it cached."""
        self.shell("echo 3 >/proc/sys/vm/drop_caches")
        return self.shell(f"{text} | md5sum").split()[0]

    def files_are_whole(self) -> None:
        """What test_file_systems left on the disks."""
        for disk in ("vde", "vdf"):
            self.shell(f"sh /root/check {disk}")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A block device of the lab, 8 MiB large."""
    file = tmp_path_factory.mktemp("device") / "file"
    file.write_bytes(bytes(8 * MIB))
    shown = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    yield Path(shown.stdout.strip())
    subprocess.run(["losetup", "-d", shown.stdout.strip()], check=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that has O_DIRECT and holes, as the lab's own has not."""
    above = tmp_path_factory.mktemp("files")
    place = above / "ext4"
    place.mkdir()
    subprocess.run(["modprobe", "ext4"], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", above / "file", "320M"], check=True)
    subprocess.run(["mount", "-o", "loop", above / "file", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def guest(directory: Path, device: Path, small: Path) -> Iterator[Linux]:
    with Linux(directory, device, small) as guest:
        yield guest


def test_linux_finds_them(guest: Linux) -> None:
    assert guest.queue("vda", "serial") == "kept-by-the-host"
    assert [guest.queue(disk, "size") for disk in ("vda", "vdb", "vdc")] == ["65536", str(BASE // 512), "10"]
    assert [guest.queue(disk, "ro") for disk in ("vda", "vdb", "vdc")] == ["0", "0", "1"]
    assert guest.queue("vda", "queue/write_cache") == "write back"
    assert guest.queue("vda", "queue/physical_block_size") == "4096"
    assert guest.queue("vda", "queue/discard_granularity") == "4096"
    assert int(guest.queue("vda", "queue/discard_max_bytes")) > 1 << 30
    assert guest.queue("vdc", "queue/discard_max_bytes") == "0"
    assert guest.shell("ls /sys/block/vdb/mq").split() == ["0", "1"], "as many as there are processors"
    assert " / ext4 " in guest.shell("cat /proc/mounts")
    assert guest.shell("head -c 5000 /dev/vdc | md5sum").split()[0] == hashlib.md5(b"fixed" * 1000).hexdigest()


def test_what_is_written_is_in_the_file(guest: Linux) -> None:
    guest.shell("dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null")
    guest.shell("dd if=/tmp/data of=/dev/vda bs=64k seek=16 conv=notrunc,fsync 2>/dev/null")
    written = guest.shell("md5sum /tmp/data").split()[0]
    with guest.kept.open("rb") as file:
        file.seek(MIB)
        assert hashlib.md5(file.read(4 * MIB)).hexdigest() == written
    assert guest.md5("dd if=/dev/vda bs=1M skip=1 count=4 2>/dev/null") == written
    guest.shell("dd if=/tmp/data of=/dev/vda bs=512 seek=9 count=7 oflag=direct conv=notrunc 2>/dev/null")
    guest.shell("head -c 3584 /tmp/data >/tmp/part")
    with guest.kept.open("rb") as file:
        file.seek(9 * 512)
        assert hashlib.md5(file.read(3584)).hexdigest() == guest.shell("md5sum /tmp/part").split()[0]


def test_pieces_written_at_once_are_where_they_belong(guest: Linux) -> None:
    for disk, file in guest.files.items():
        expected = bytearray(file.read_bytes()[:BASE])
        for to, at, length in guest.pieces[disk].written:
            expected[to : to + length] = guest.content[at : at + length]
        guest.shell(f"sh /root/pieces-{disk}")
        wanted = hashlib.md5(expected).hexdigest()
        assert guest.md5(f"dd if=/dev/{disk} bs=1M count={BASE // MIB} 2>/dev/null") == wanted, disk
        assert file.read_bytes()[:BASE] == expected, disk


def test_file_systems(guest: Linux) -> None:
    for disk, file in guest.files.items():
        guest.shell(f"sh /root/make {disk}")
        subprocess.run(["e2fsck", "-fn", file], check=True, capture_output=True)


def test_trim_gives_blocks_back(guest: Linux) -> None:
    for disk, file in guest.files.items():
        guest.shell(f"mount -t ext4 /dev/{disk} /mnt && dd if=/dev/vdb of=/mnt/more bs=1M count=4 && sync")
        full = file.stat().st_blocks
        guest.shell("rm /mnt/more && sync && fstrim /mnt && umount /mnt")
        assert file.stat().st_blocks < full - 4 * MIB // 512 + 1024, disk
    guest.shell("blkdiscard /dev/vda")
    assert guest.kept.stat().st_blocks < 64
    assert guest.queue("vda", "size") == "65536"


def test_a_block_device_of_the_host(guest: Linux, device: Path) -> None:
    assert guest.queue("vdd", "size") == str(8 * MIB // 512)
    guest.shell("dd if=/dev/urandom of=/dev/vdd bs=64k count=32 conv=fsync,notrunc 2>/dev/null")
    written = guest.md5("cat /dev/vdd")
    assert hashlib.md5(device.read_bytes()).hexdigest() == written
    guest.shell(
        "blkdiscard -z /dev/vdd 2>/dev/null || dd if=/dev/zero of=/dev/vdd bs=1M count=2 conv=fsync 2>/dev/null"
    )
    assert guest.md5("cat /dev/vdd") == hashlib.md5(bytes(8 * MIB)).hexdigest()
    with pytest.raises(UserError, match=f"^disk {device}: .*: unmount it first$"):
        Disks(lambda call: None).open(device)


def test_the_guest_switches_the_cache(guest: Linux) -> None:
    guest.shell("echo 'write through' >/sys/block/vda/cache_type")
    assert guest.queue("vda", "queue/write_cache") == "write through"
    guest.shell("echo through | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null && sync")
    assert guest.kept.read_bytes()[:8] == b"through\n"
    guest.shell("echo 'write back' >/sys/block/vda/cache_type")
    assert guest.queue("vda", "queue/write_cache") == "write back"


def test_a_larger_file_is_a_larger_disk(guest: Linux) -> None:
    os.truncate(guest.kept, 48 * MIB)
    disk = guest.machine.board.devices["virtio-blk"]
    guest.machine.call(disk.resize)  # type: ignore[attr-defined]
    guest.until(lambda: guest.queue("vda", "size") == str(48 * MIB // 512), "the new size")


def test_a_snapshot_has_the_temporary_disk(guest: Linux) -> None:
    before = guest.md5("cat /dev/vdb")
    assert before == hashlib.md5(guest.base.read_bytes()).hexdigest()
    guest.shell("dd if=/dev/urandom of=/dev/vdb bs=1M count=3 seek=2 conv=fsync,notrunc 2>/dev/null")
    written = guest.md5("cat /dev/vdb")
    snapshot = guest.machine.snapshot()
    guest.shell("dd if=/dev/zero of=/dev/vdb bs=1M count=8 conv=fsync,notrunc 2>/dev/null")
    assert guest.md5("cat /dev/vdb") not in (before, written)
    guest.machine.restore(snapshot)
    assert guest.md5("cat /dev/vdb") == written
    guest.shell("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync,notrunc 2>/dev/null")
    with pytest.raises(UserError, match=f"disk {guest.kept} was written to since this snapshot was made"):
        guest.machine.restore(snapshot)
    assert guest.md5("cat /dev/vdb") == written
    assert hashlib.md5(guest.base.read_bytes()).hexdigest() == before


def test_snapshots_under_load(guest: Linux) -> None:
    guest.shell("dd if=/dev/urandom of=/tmp/piece bs=64k count=4 2>/dev/null")
    guest.shell("touch /tmp/log; (sh /root/load &)")

    def done() -> int:
        return len(guest.shell("cat /tmp/log").splitlines())

    guest.until(lambda: done() >= 3, "the load")
    snapshot = guest.machine.snapshot()
    before = done()
    for _ in range(2):
        guest.until(lambda: done() >= before + 3, "the load goes on")
        guest.machine.restore(snapshot)
        assert done() < before + 3
    guest.until(lambda: guest.shell("ls /tmp/finished", status=None).startswith("/tmp"), "the end of the load")
    assert guest.shell("cat /tmp/log").split() == [str(n + 1) for n in range(14)]
    piece = guest.shell("md5sum /tmp/piece").split()[0]
    assert {line.split()[0] for line in guest.shell("sh /root/sums").splitlines()} == {piece}


def test_nothing_of_it_was_worth_a_warning(guest: Linux) -> None:
    log = guest.shell("dmesg -r | grep '^<[0-4]>' | grep -v 'supports timestamps until 2038'", status=None)
    assert warnings(log) == []


def test_after_a_reset_in_place_and_a_reboot(guest: Linux) -> None:
    guest.files_are_whole()
    guest.machine.reset()
    guest.booted()
    guest.files_are_whole()
    guest.send("reboot -f\n")
    guest.booted()
    guest.files_are_whole()
    for disk in ("vde", "vdf"):
        subprocess.run(["e2fsck", "-fn", guest.files[disk]], check=True, capture_output=True)


def failed(guest: Linux, command: str) -> list[str]:
    """What the user is told where *command* fails."""
    told: list[str] = []

    def tell(event: MachineEvent) -> None:
        if event.kind == "io-error":
            told.append(event.message)

    added = guest.machine.events.add(tell)
    assert "Input/output error" in guest.shell(f"{command} 2>&1", status=None)
    assert guest.shell("echo alive").strip() == "alive"
    added.remove()
    return told


def test_an_error_of_the_host_is_one_of_the_disk(guest: Linux) -> None:
    os.truncate(guest.kept, MIB)
    (line,) = failed(guest, "dd if=/dev/vda of=/dev/null bs=4k skip=1000 count=1")
    assert "the file has become shorter" in line
    guest.shell("dd if=/dev/zero of=/dev/vda bs=4k seek=1000 count=1 conv=fsync,notrunc 2>/dev/null")
    (line,) = failed(guest, "dd if=/dev/zero of=/dev/vdh bs=64k count=100 oflag=direct")
    assert line.endswith("failed: No space left on device: the guest hears of an I/O error")


def test_interrupts_by_wire(tmp_path: Path) -> None:
    """A disk that the host has filled, under pci=nomsi."""
    tree, image, dice = tmp_path / "tree", tmp_path / "image", random.Random(3)
    tree.mkdir()
    for number in range(20):
        (tree / f"{number}").write_bytes(dice.randbytes(dice.randrange(1, 300_000)))
    subprocess.run(f"{SUMS} >sums", shell=True, check=True, cwd=tree)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "24M"], check=True)
    with Guest(
        MachineConfig(
            memory=256 * MIB,
            kernel=CLOUD_KERNEL,
            initrd=INITRAMFS_CLOUD,
            cmdline="console=ttyS0 quiet pci=nomsi",
            devices=(f"virtio-blk,path={image}",),
        )
    ) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        guest.shell("mount -t ext4 /dev/vda /mnt && cd /mnt && md5sum -c -s sums")
        guest.shell("mkdir more && cp [0-9]* sums more && sync && echo 3 >/proc/sys/vm/drop_caches")
        guest.shell("cd more && md5sum -c -s sums && cd / && umount /mnt")
        table = guest.shell("grep virtio /proc/interrupts")
        assert "MSI" not in table and "IO-APIC" in table
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
