"""Disks under a current Linux: what it finds, what it writes and reads again, what the host's file has of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.backends.disks import Disks
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_CLOUD

MIB = 1 << 20


class Linux(Guest):
    """With vda, which the host keeps; vdb, which is temporary, with two queues; vdc, which is read-only; and vdd,
    which is a block device of the host."""

    def __init__(self, directory: Path, device: Path) -> None:
        self.kept, self.base, self.fixed = (directory / name for name in ("kept.img", "base.img", "fixed.img"))
        self.base.write_bytes(bytes(range(256)) * (16 * MIB // 256))
        self.fixed.write_bytes(b"fixed" * 1000)
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS_CLOUD,
                cmdline="console=ttyS0 quiet",
                devices=(
                    f"virtio-blk,path={self.kept},size=32M,serial=kept-by-the-host",
                    f"virtio-blk,path={self.base},temporary,queues=2",
                    f"virtio-blk,path={self.fixed},readonly",
                    f"virtio-blk,path={device},cache=none",
                ),
            )
        )
        self.expect(USERSPACE)
        self.expect("# ")

    def queue(self, disk: str, name: str) -> str:
        """What Linux knows of a disk."""
        return self.shell(f"cat /sys/block/{disk}/{name}").strip()

    def md5(self, text: str) -> str:
        """Of what the guest reads now, with nothing of it cached."""
        self.shell("echo 3 >/proc/sys/vm/drop_caches")
        return self.shell(f"{text} | md5sum").split()[0]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A block device of the lab, 8 MiB large."""
    file = tmp_path_factory.mktemp("device") / "file"
    file.write_bytes(bytes(8 * MIB))
    shown = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    yield Path(shown.stdout.strip())
    subprocess.run(["losetup", "-d", shown.stdout.strip()], check=True)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, device: Path) -> Iterator[Linux]:
    with Linux(tmp_path_factory.mktemp("disks"), device) as guest:
        yield guest


def test_linux_finds_them(guest: Linux) -> None:
    assert guest.queue("vda", "serial") == "kept-by-the-host"
    assert [guest.queue(disk, "size") for disk in ("vda", "vdb", "vdc")] == ["65536", "32768", "10"]
    assert [guest.queue(disk, "ro") for disk in ("vda", "vdb", "vdc")] == ["0", "0", "1"]
    assert guest.queue("vda", "queue/write_cache") == "write back"
    assert guest.queue("vda", "queue/physical_block_size") == "4096"
    assert guest.queue("vda", "queue/discard_granularity") == "4096"
    assert int(guest.queue("vda", "queue/discard_max_bytes")) > 1 << 30
    assert guest.queue("vdc", "queue/discard_max_bytes") == "0"
    assert guest.shell("ls /sys/block/vdb/mq").split() == ["0"], "as many as there are processors"
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


def test_a_file_system_is_there_again_after_it_was_unmounted(guest: Linux) -> None:
    guest.shell("mke2fs -q /dev/vda 2>/dev/null && mount /dev/vda /mnt")
    guest.shell(
        "cp -a /bin/busybox /lib/modules /mnt && cd /mnt && find . -type f | sort | xargs md5sum >/tmp/sums; cd /"
    )
    guest.shell("umount /mnt && mount /dev/vda /mnt && cd /mnt && md5sum -c -s /tmp/sums; cd /")
    full = guest.kept.stat().st_blocks
    guest.shell("rm -r /mnt/busybox /mnt/modules && sync && fstrim /mnt && umount /mnt && blkdiscard /dev/vda")
    assert guest.kept.stat().st_blocks < full - 2048
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


def test_nothing_of_it_was_worth_a_warning(guest: Linux) -> None:
    log = guest.shell("dmesg -r | grep '^<[0-4]>' | grep -v 'ext2 .* supports timestamps until 2038'", status=None)
    assert warnings(log) == []


def test_an_error_of_the_host_is_one_of_the_disk(guest: Linux) -> None:
    told: list[str] = []
    guest.machine.events.add(lambda event: told.append(event.message) if event.kind == "io-error" else None)
    os.truncate(guest.kept, MIB)
    guest.shell("echo 3 >/proc/sys/vm/drop_caches")
    assert "Input/output error" in guest.shell("dd if=/dev/vda of=/dev/null bs=4k skip=1000 count=1 2>&1", status=None)
    assert len(told) == 1 and "the file has become shorter" in told[0]
    guest.shell("dd if=/dev/zero of=/dev/vda bs=4k seek=1000 count=1 conv=fsync,notrunc 2>/dev/null")
