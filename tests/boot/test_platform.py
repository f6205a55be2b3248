"""The platform as a current Linux sees it: RAM on both sides of the hole, ACPI or the MP table, both entries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.boot.bzimage import XLF_KERNEL_64
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End
from tests.rig.guest import USERSPACE, Guest, irq_counts, system_ram, warnings
from tests.rig.lab import CLOUD_KERNEL, GENERIC_KERNEL, INITRAMFS_CLOUD, INITRAMFS_GENERIC, kvm_statistics

MIB = 1 << 20
GIB = 1 << 30
ABOVE = 256 * MIB
"""RAM from 4 GiB up; the lab must have more than 3 GiB for that."""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    config = MachineConfig(
        memory=3 * GIB + ABOVE,
        kernel=CLOUD_KERNEL,
        initrd=INITRAMFS_CLOUD,
        cmdline="console=ttyS0 quiet",
        virtio_input="standard",
        rng=True,
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        yield guest


EXITS = 1300
"""Exits to userspace until userspace, with the devices that `pyvmm run` has by default."""
EXITS_OF_A_FUNCTION = 300
"""What one more virtio function adds: Linux looks for each capability from the start of the list, two exits a look."""


def test_exits_to_userspace_are_few(guest: Guest) -> None:
    """Most of them once were looks at PCI buses that there are not; scripts/bench boot-exits says what they are for."""
    assert 500 < guest.exits < EXITS + EXITS_OF_A_FUNCTION


def test_ram_goes_on_above_4_gib(guest: Guest) -> None:
    iomem = guest.shell("grep 'System RAM' /proc/iomem")
    assert f"{4 * GIB:x}-{4 * GIB + ABOVE - 1:x} : System RAM" in iomem
    assert 3 * GIB + ABOVE - MIB < sum(system_ram(iomem)) < 3 * GIB + ABOVE
    assert int(guest.shell("grep MemTotal /proc/meminfo").split()[1]) * 1024 > 0.95 * (3 * GIB + ABOVE)


def test_ram_is_mapped_in_huge_pages(guest: Guest) -> None:
    """By the host, and by KVM: 2 MiB of the guest are one entry of its nested page tables."""
    touched = huge = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            ours = int(value.split()[0]) << 10 == guest.machine.board.ram.size
        elif name == "Rss" and ours:
            touched += int(value.split()[0])
        elif name == "AnonHugePages" and ours:
            huge += int(value.split()[0])
    assert 0.9 * touched < huge <= touched
    mapped = (kvm_statistics(os.getpid(), guest.machine.board.vm.fd) / "pages_2m").read_text()
    assert 0.9 * huge / 2048 < int(mapped) <= huge / 2048


@pytest.fixture
def pool() -> Iterator[Path]:
    """The lab's pool of 2 MiB pages, empty again at the end."""
    directory = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    yield directory
    (directory / "nr_hugepages").write_text("0")


def test_ram_from_a_pool_of_the_host(pool: Path) -> None:
    config = MachineConfig(memory=64 * MIB, guest="keyboard", memory_hugetlb=2 * MIB)
    with pytest.raises(UserError, match=f"of 32 pages of 2M this host has 0 free: put more into {pool}/nr_hugepages"):
        Machine(config)
    (pool / "nr_hugepages").write_text("32")
    with Machine(config) as machine:
        assert (pool / "resv_hugepages").read_text() != "0\n"
        machine.wait(lambda: "> " in machine.screen, 60)
        assert all(region.fd is not None for region in machine.board.ram.regions)
        assert int((pool / "free_hugepages").read_text()) < 32
    assert (pool / "free_hugepages").read_text() == "32\n"


def test_a_device_reaches_ram_above_4_gib(guest: Guest) -> None:
    """Linux takes memory for a driver's buffers from above 4 GiB first."""
    guest.shell("cat /sys/class/misc/hw_random/rng_current | grep virtio_rng")
    blocks = guest.shell("for i in 1 2 3; do head -c 1024 /dev/hwrng | md5sum; done").split("\n")
    assert len(set(blocks) - {""}) == 3
    assert guest.shell("grep -A 20 'Node 0, zone   Normal' /proc/zoneinfo | grep -m 1 present").split()[1] == str(
        ABOVE // 4096
    )


def test_linux_takes_the_platform_as_acpi_describes_it(guest: Guest) -> None:
    log = guest.shell("dmesg | grep -E 'ACPI|PCI:|PM-Timer|acpi|i8042|rtc_cmos|ttyS0'")
    for text in (
        "ACPI: PM: (supports S0 S3 S5)",
        "ACPI: Using IOAPIC for interrupt routing",
        "PCI: MMCONFIG at [mem 0xe0000000-0xe00fffff] reserved",
        "ACPI: PCI Root Bridge [PCI0] (domain 0000 [bus 00])",
        "i8042: PNP: PS/2 Controller [PNP0303:PS2K,PNP0f13:PS2M] at 0x60,0x64 irq 1,12",
    ):
        assert text in log
    assert re.search(r"\d\d:\d\d: ttyS0 at I/O 0x3f8 \(irq = 4, base_baud = 115200\) is a 16550A", log)
    assert re.search(r"rtc_cmos \d\d:\d\d: registered as rtc0", log)
    assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []


def test_without_acpi_the_mp_table_is_enough() -> None:
    """Both CPUs, the IOAPIC's pins, and INTx of a PCI device."""
    config = MachineConfig(
        memory=512 * MIB,
        cpus=2,
        kernel=GENERIC_KERNEL,
        initrd=INITRAMFS_GENERIC,
        cmdline="console=ttyS0 quiet acpi=off pci=nomsi",
        rng=True,
        virtio_input="none",
        no_reboot=True,
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        assert guest.shell("nproc").split() == ["2"]
        assert len(set(guest.shell("head -c 64 /dev/hwrng | od -An -v -tx1").split())) > 16
        table = guest.shell("cat /proc/interrupts")
        assert re.search(r"4: .*IO-APIC +4-edge +ttyS0", table)
        assert re.search(r" 1[6-9]: .*IO-APIC +1[6-9]-fasteoi +virtio0", table)
        counts = irq_counts(table)
        assert sum(counts["virtio0"]) > 0 and sum(counts["ttyS0"]) > 20 and min(counts["LOC"]) > 10
        assert "MultiProcessor Specification" in guest.shell("dmesg | grep MultiProcessor")
        assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []
        guest.send("reboot -f\n")
        outcome = guest.wait()
        assert outcome.end is End.RESET and outcome.message == "port 0x64"


XLOADFLAGS = 0x236  # Linux Documentation/x86/boot.rst, "The Real-Mode Kernel Header"


def test_four_cpus_from_the_32_bit_entry(tmp_path: Path) -> None:
    """A kernel that does not offer the 64-bit entry is entered in 32-bit mode."""
    image = bytearray(CLOUD_KERNEL.read_bytes())
    assert image[XLOADFLAGS] & XLF_KERNEL_64
    image[XLOADFLAGS] &= ~XLF_KERNEL_64
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(image)
    config = MachineConfig(
        memory=512 * MIB,
        cpus=4,
        kernel=kernel,
        initrd=INITRAMFS_CLOUD,
        cmdline="console=ttyS0 quiet pyvmm.modules=none",
        virtio_input="none",
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        assert guest.shell("echo $((6 * 7)); uname -m; nproc").split() == ["42", "x86_64", "4"]
        cores = guest.shell(
            "grep 'core id' /proc/cpuinfo | cut -d: -f2; cat /sys/devices/system/cpu/cpu3/topology/core_cpus_list"
        )
        assert cores.split() == ["0", "1", "2", "3", "3"]
        counts = irq_counts(guest.shell("cat /proc/interrupts"))
        assert len(counts["LOC"]) == 4 and min(counts["LOC"]) > 10
        assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []
        guest.send("poweroff -f\n")
        assert guest.wait().end is End.POWER_OFF
