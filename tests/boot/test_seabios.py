"""Linux from disks that SeaBIOS boots, with GRUB and extlinux; and what it finds in fw_cfg and in the SMBIOS table,
after a direct boot too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.boot.cpio import Archive
from pyvmm.boot.shared_libraries import shared_libraries
from pyvmm.config import FwCfgFile, MachineConfig
from pyvmm.machine.outcome import End
from tests.rig.boot_disks import extlinux_disk, grub_disk, hybrid_iso
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, DEBIAN, INITRAMFS_CLOUD
from tests.rig.netboot import CLIENT, NetbootServer

MIB = 1 << 20
GRUB_CFG = """set timeout=1
menuentry "Linux of the test" {
    linux /boot/vmlinuz console=ttyS0 quiet
    initrd /boot/initrd
}
"""
EXTLINUX_CONF = """DEFAULT linux
SAY This is extlinux
LABEL linux
    LINUX /boot/vmlinuz
    INITRD /boot/initrd
    APPEND console=ttyS0 quiet
"""
MEMTEST = Path("/boot/memtest86+x64.bin")
"""Of Debian's memtest86+."""
IPXE = Path("/usr/lib/ipxe/ipxe.iso")
"""Of Debian's ipxe."""
PROGRAM = bytes.fromhex("fa 31c0 8ed8 fc be167c baf803 ac ee 84c0 75fa f4 ebfd").ljust(0x16, b"\x90")
"""At 0000:7C00 it sends what is behind it to COM1, whose transmitter is always ready here, and halts."""
ISOLINUX_CFG = """DEFAULT memtest
LABEL memtest
    LINUX /boot/memtest
"""


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dmidecode, and Linux's driver of fw_cfg."""
    archive = Archive()
    (module,) = (CLOUD_KERNEL.resolve().parents[1] / "lib/modules").glob("*/kernel/drivers/firmware/qemu_fw_cfg.ko")
    archive.file("/lib/modules/99-qemu_fw_cfg.ko", module.read_bytes())
    program = Path(shutil.which("dmidecode") or pytest.fail("dmidecode is missing: scripts/test installs it"))
    archive.file("/bin/dmidecode", program.read_bytes(), 0o755)
    for library in shared_libraries(program, program.read_bytes()):
        archive.file(library, Path(library).read_bytes(), 0o755)
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    data = INITRAMFS_CLOUD.read_bytes()
    path.write_bytes(data + bytes(-len(data) % 4) + bytes(archive))
    return path


class Linux(Guest):
    """To its shell."""

    def __init__(self, **options: object) -> None:
        fields = {
            "memory": 256 * MIB,
            "virtio_input": "none",
            "smbios": ("type=1,serial=4711",),
            "fw_cfg": (FwCfgFile("opt/test", b"for the guest"),),
            **options,
        }
        super().__init__(MachineConfig(**fields))  # type: ignore[arg-type]

    def check(self) -> None:
        """What every such guest finds, however it was started."""
        assert warnings(self.shell("dmesg -r")) == []
        told = self.shell("dmidecode")
        assert "Serial Number: 4711\n" in told.replace("\r", "")
        assert not any(word in told for word in ("BAD", "OUT OF SPEC", "Wrong", "broken"))
        assert self.shell("cat /sys/firmware/qemu_fw_cfg/by_name/opt/test/raw").strip() == "for the guest"
        note = self.machine.parts["fw_cfg"].vmcoreinfo_note
        assert note is not None, "the driver has written it by DMA"
        release = self.shell("uname -r").strip()
        assert f"OSRELEASE={release}\n".encode() in self.machine.memory.read(note.paddr, note.size)

    def power_off(self) -> None:
        self.send("exit\n")
        self.until(lambda: self.outcome is not None, "the end")
        assert self.outcome is not None and self.outcome.end is End.POWER_OFF


@pytest.fixture
def linux() -> Iterator[list[Linux]]:
    """Those that are in it at the end are closed."""
    guests: list[Linux] = []
    yield guests
    for guest in guests:
        guest.close()


def shown(text: str) -> re.Pattern[str]:
    """*text* as SeaBIOS shows it on the serial port, which moves the cursor between any two characters."""
    return re.compile(r"(?:\x1b\[[\d;?]*[A-Za-z])*".join(map(re.escape, text)))


def shell(guest: Linux) -> Linux:
    guest.expect(USERSPACE)
    guest.expect("# ")
    return guest


def test_a_direct_boot(linux: list[Linux], initrd: Path) -> None:
    linux.append(Linux(kernel=CLOUD_KERNEL, initrd=initrd, cmdline="console=ttyS0 quiet"))
    guest = shell(linux[0])
    guest.check()
    assert "Vendor: pyvmm" in guest.shell("dmidecode -t bios")


def test_grub(linux: list[Linux], initrd: Path, tmp_path: Path) -> None:
    """From a virtio disk: the menu on the serial port, Linux's view of SeaBIOS, and power off by ACPI."""
    disk = grub_disk(tmp_path / "disk.img", GRUB_CFG, {"vmlinuz": CLOUD_KERNEL, "initrd": initrd})
    linux.append(Linux(firmware="seabios", devices=(f"virtio-blk,path={disk}", "virtio-rng")))
    guest = linux[0]
    for text in ("SeaBIOS (version ", "Booting from Hard Disk", "GNU GRUB", "Linux of the test"):
        guest.expect(shown(text))
    shell(guest)
    guest.check()
    assert "Vendor: SeaBIOS" in guest.shell("dmidecode -t bios")
    log = guest.shell("dmesg")
    assert "can't claim" not in log and "no compatible bridge window" not in log, (
        "BARs are where the tables let them be"
    )
    assert "vda" in guest.shell("ls /sys/block") and guest.shell("cat /proc/interrupts").count("virtio") >= 2
    guest.power_off()


def test_extlinux(linux: list[Linux], initrd: Path, tmp_path: Path) -> None:
    """From an ATA disk."""
    disk = extlinux_disk(tmp_path / "disk.img", EXTLINUX_CONF, {"vmlinuz": CLOUD_KERNEL, "initrd": initrd})
    linux.append(Linux(firmware="seabios", devices=(f"ata-disk,path={disk}",)))
    guest = linux[0]
    for text in ("SYSLINUX", "This is extlinux"):
        guest.expect(shown(text))
    shell(guest).check()


def test_memtest_from_a_hybrid_iso(linux: list[Linux], tmp_path: Path) -> None:
    """memtest86+ begins its tests, from an ISO that is a disk."""
    assert MEMTEST.exists(), f"{MEMTEST} is missing: scripts/test installs it"
    disk = hybrid_iso(tmp_path / "disk.iso", ISOLINUX_CFG, {"memtest": MEMTEST})
    linux.append(Linux(firmware="seabios", memory=64 * MIB, devices=(f"virtio-blk,path={disk},readonly",)))
    guest = linux[0]
    guest.expect(shown("ISOLINUX"))
    guest.expect_screen("Memtest86+")
    guest.expect_screen("Status: Testing")


def test_debian(linux: list[Linux]) -> None:
    """A disk of Debian's packages: by GRUB and Debian's own initial ramdisk to the login, a command, power off."""
    linux.append(Linux(firmware="seabios", devices=(f"virtio-blk,path={DEBIAN},temporary",)))
    guest = linux[0]
    guest.expect(shown("GNU GRUB"))
    guest.expect("debian login: ")
    guest.send("root\n")
    guest.expect("root@debian:~# ")
    assert guest.shell(". /etc/os-release; echo $ID-$VERSION_ID").strip() == "debian-12"
    assert guest.shell("findmnt -no SOURCE,FSTYPE,OPTIONS /").split()[:2] == ["/dev/vda1", "ext4"]
    assert guest.shell("touch /root/written; sync; stat -c %n /root/written").strip() == "/root/written"
    assert guest.shell("cat /proc/1/comm").strip() == "init"
    guest.send("poweroff\n")
    assert guest.wait().end is End.POWER_OFF


def test_the_network_by_debians_ipxe(linux: list[Linux], tmp_path: Path) -> None:
    """Its ISO as a disk: it drives the virtio card, has its address by DHCP and a program by TFTP, which runs."""
    assert IPXE.exists(), f"{IPXE} is missing: scripts/test installs it"
    script = b"#!ipxe\necho A script at ${net0/ip}\nchain program\n"
    program = PROGRAM + b"The program has been fetched.\0"
    # Of three blocks, the last one empty.
    server = NetbootServer(tmp_path / "wire", "script", {"script": script, "program": program.ljust(1024, b"\0")})
    try:
        devices = (f"virtio-blk,path={IPXE},readonly", f"virtio-net,to=socket:{tmp_path}/wire")
        linux.append(Linux(firmware="seabios", memory=64 * MIB, devices=devices))
        guest = linux[0]
        guest.expect("The program has been fetched.")
        guest.expect_screen(f"A script at {CLIENT}")
        assert (server.leased, server.sent) == (1, ["script", "program"])
        linux.pop().close()
    finally:
        server.close()
