"""Linux 2.6: the images of the folder guests26, whose README says what each can do."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from pyvmm.config import Irqchip, MachineConfig
from pyvmm.machine.outcome import End
from tests.rig.guest import Guest, irq_counts

MIB = 1 << 20
IRQCHIPS = ("kernel", "split", "user")
LINUX_2_6_10 = "root=/dev/ram0 ramdisk_size=8192 panic=1 {} init=/bin/sh"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_2_6_10_takes_a_typed_command_and_shows_the_result(guests26: Path, irqchip: Irqchip, tmp_path: Path) -> None:
    """Keys go through i8042 and atkbd, the result is read off the VGA screen."""
    config = MachineConfig(
        memory=128 * MIB,
        kernel=guests26 / "vmlinuz-2.6.10",
        initrd=guests26 / "initrd-2.6.10",
        cmdline="console=tty0 " + LINUX_2_6_10.format("acpi=off noapic nolapic"),
        irqchip=irqchip,
        virtio_input="none",
    )
    with Guest(config) as guest:
        guest.expect_screen("# ")
        guest.type('echo "Result: {$((6 * 7))} <~!@#%^&*_+|?>"\n')
        guest.expect_screen("\nResult: {42} <~!@#%^&*_+|?>\n")
        back_and_elsewhere(guest, tmp_path / "saved")
        guest.type("mount -t proc proc /proc; cat /proc/interrupts\n")
        guest.expect_screen("ERR:")
        counts = irq_counts("\n".join(guest.screen.text()))
        assert counts["i8042"][0] > 80 and counts["timer"][0] > 200


def back_and_elsewhere(guest: Guest, file: Path) -> None:
    """To a moment while a command is typed, twice, and on from there in another machine, by the file."""
    guest.type("clear; echo Half a com")
    snapshot = guest.machine.snapshot()
    snapshot.save(file)
    for _ in range(2):
        guest.type("lete; echo Lost\n")
        guest.machine.restore(snapshot)
        type_the_rest(guest)
    with guest.machine.paused("test"), Guest.restored(file) as other:  # with half a processor it ticks and does no more
        type_the_rest(other)


def type_the_rest(guest: Guest) -> None:
    """Of what was typed when the snapshot was taken the guest has some; Ctrl-U takes it back."""
    guest.type("<ctrl-u>clear; echo Whole: {$((6 * 7))}\n")
    guest.expect_screen("Whole: {42}\n")


def test_2_6_10_has_acpi_and_scans_the_bus(guests26: Path) -> None:
    config = MachineConfig(
        memory=128 * MIB,
        kernel=guests26 / "vmlinuz-2.6.10",
        initrd=guests26 / "initrd-2.6.10",
        cmdline="console=ttyS0 " + LINUX_2_6_10.format("noapic"),
        virtio_input="standard",
    )
    with Guest(config) as guest:
        guest.expect("ACPI: Interpreter enabled")
        guest.expect("ACPI: PCI Root Bridge [PCI0]")
        guest.expect("# ")
        guest.shell("mount -t proc proc /proc")
        devices = guest.shell("while read -r line; do echo $line; done </proc/bus/pci/devices")
        found = {line.split()[0]: line.split() for line in devices.splitlines()}
        assert {slot: fields[1] for slot, fields in found.items()} == {
            "0000": "808629c0",
            "0050": "1af41052",
            "0051": "1af41052",
        }
        for slot in ("0050", "0051"):
            assert int(found[slot][2], 16) in (10, 11), "INTx is routed to one of the ISA IRQs"
            assert [int(size, 16) for size in found[slot][10:13]] == [0x4000, 0, 0x1000]
        assert "acpi" in irq_counts(guest.shell("cat /proc/interrupts"))


POWER_OFF_C = """
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
void _start(void)
{
    call(1, 1, (long)"userspace of ours\\n", 18);    /* write */
    call(169, 0xfee1dead, 672274793, 0x4321fedc);    /* reboot, LINUX_REBOOT_CMD_POWER_OFF */
    for (;;)
        ;
}
"""


def initramfs(directory: Path, source: str) -> Path:
    """An initial RAM file system with one program, /init, for kernels that are too old for any C library of today."""
    (directory / "init.c").write_text(source)
    (directory / "tree").mkdir()
    flags = "-Os -nostdlib -static -fno-stack-protector -fcf-protection=none -Wl,--build-id=none,-z,max-page-size=4096"
    subprocess.run(["gcc", *flags.split(), "-o", directory / "tree" / "init", directory / "init.c"], check=True)
    (directory / "tree" / "dev").mkdir()
    os.mknod(directory / "tree" / "dev" / "console", 0o600 | stat.S_IFCHR, os.makedev(5, 1))
    archive = "find . | cpio -o -H newc --quiet | gzip >../initramfs.gz"
    subprocess.run(["sh", "-c", archive], cwd=directory / "tree", check=True)
    return directory / "initramfs.gz"


def test_2_6_10_powers_off_through_acpi(guests26: Path, tmp_path: Path) -> None:
    config = MachineConfig(
        memory=128 * MIB,
        kernel=guests26 / "vmlinuz-2.6.10",
        initrd=initramfs(tmp_path, POWER_OFF_C),
        cmdline="console=ttyS0 panic=1 noapic",
        virtio_input="none",
    )
    with Guest(config) as guest:
        assert guest.wait().end is End.POWER_OFF
        assert "userspace of ours" in guest.output
        assert "Power down." in guest.output


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_2_6_20_has_a_shell_on_the_serial_port(guests26: Path, irqchip: Irqchip) -> None:
    """A raw image, entered in 32-bit mode at 0x100000."""
    config = MachineConfig(
        memory=64 * MIB,
        kernel=guests26 / "vmlinux-2.6.20.bin",
        flat="linux32",
        initrd=guests26 / "root.bin",
        cmdline="console=ttyS0 root=/dev/ram0 rw init=/bin/sh",
        irqchip=irqchip,
        virtio_input="none",
        no_reboot=True,
    )
    with Guest(config) as guest:
        guest.expect("/ # ")
        assert guest.shell("echo $((6 * 7)); uname -srm").split() == ["42", "Linux", "2.6.20", "i686"]
        guest.shell("mkdir -p /proc; mount -t proc proc /proc")
        counts = irq_counts(guest.shell("cat /proc/interrupts"))
        assert counts["timer"][0] > 100 and counts["serial"][0] > 10
        guest.send("reboot -f\n")
        assert guest.wait().end is End.RESET
