"""A current Linux on two CPUs under `pyvmm run`, driven through the terminal that the command runs on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from pyvmm.testing.shell import shell
from tests.rig.console import Console
from tests.rig.guest import USERSPACE, irq_counts, system_ram, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS, PYVMM

MIB = 1 << 20
MEMORY = 512 * MIB


@pytest.fixture(scope="module")
def linux() -> Iterator[Console]:
    """At its shell."""
    command = [PYVMM, "run", "-k", CLOUD_KERNEL, "-i", INITRAMFS, "-m", "512M", "-c", "2", "-p", "console=ttyS0 quiet"]
    with Console([str(word) for word in command], on_pty=True) as console:
        console.expect(USERSPACE)
        console.expect("# ")
        yield console


def test_a_typed_command_is_answered(linux: Console) -> None:
    assert shell(linux, "echo $((6 * 7)); uname -sm").split() == ["42", "Linux", "x86_64"]


def test_two_cpus_of_one_package(linux: Console) -> None:
    assert shell(linux, "nproc").split() == ["2"]
    fields: dict[str, list[str]] = {}
    for line in shell(linux, "grep -E 'processor|physical id|siblings|core|apicid' /proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), []).append(value.strip())
    assert fields["processor"] == ["0", "1"]
    assert fields["physical id"] == ["0", "0"]
    assert fields["siblings"] == fields["cpu cores"] == ["2", "2"]
    assert fields["core id"] == fields["apicid"] == fields["initial apicid"] == ["0", "1"]


def test_interrupts_come_through_the_ioapic(linux: Console) -> None:
    table = shell(linux, "cat /proc/interrupts")
    for line in (r"1: .*IO-APIC +1-edge +i8042", r"4: .*IO-APIC +4-edge +ttyS0", r"8: .*IO-APIC +8-edge +rtc0"):
        assert re.search(line, table), table
    for line in (r"9: .*IO-APIC +9-fasteoi +acpi", r"12: .*IO-APIC +12-edge +i8042"):
        assert re.search(line, table), table
    counts = irq_counts(table)
    assert sum(counts["4"]) > 20, "what was typed came by interrupt"
    assert min(counts["LOC"]) > 10, "each CPU's own timer ticks"
    assert sum(counts["RES"]) + sum(counts["CAL"]) > 0, "the CPUs interrupt each other"
    assert counts["ERR"] == counts["MIS"] == [0]


def test_clocks(linux: Console) -> None:
    source = "/sys/devices/system/clocksource/clocksource0"
    assert shell(linux, f"cat {source}/current_clocksource").split() == ["kvm-clock"]
    assert "acpi_pm" in shell(linux, f"cat {source}/available_clocksource").split()
    before = time.time()
    guest, rtc = (int(word) for word in shell(linux, "date +%s; cat /sys/class/rtc/rtc0/since_epoch").split())
    after = time.time()
    assert before - 2 < guest < after + 2 and before - 2 < rtc < after + 2
    started = time.monotonic()
    first, last = (
        float(line.split()[0]) for line in shell(linux, "cat /proc/uptime; sleep 3; cat /proc/uptime").splitlines()
    )
    assert 2.9 < last - first < time.monotonic() - started + 0.1


def test_memory_is_what_was_asked_for(linux: Console) -> None:
    # Missing are the VGA window, the BIOS area and Linux's own page 0; and of MemTotal the kernel itself.
    assert MEMORY - MIB < sum(system_ram(shell(linux, "cat /proc/iomem"))) < MEMORY
    assert 0.88 * MEMORY < int(shell(linux, "grep MemTotal /proc/meminfo").split()[1]) * 1024 < MEMORY


def test_the_kernel_log(linux: Console) -> None:
    assert warnings(shell(linux, "dmesg -r | grep '^<[0-4]>'", status=None)) == []
    said = shell(linux, "dmesg | grep -E 'Brought up|Hypervisor|ACPI: PM|MMCONFIG'")
    for text in (
        "Brought up 1 node, 2 CPUs",
        "Hypervisor detected: KVM",
        "(supports S0 S3 S5)",
        "MMCONFIG for domain 0000",
    ):
        assert text in said


def test_ctrl_a_b_is_the_break_before_a_sysrq_key(linux: Console) -> None:
    linux.send("\x01bh")
    linux.expect("sysrq: HELP : ")


def test_reboot_and_power_off(linux: Console) -> None:
    started = time.monotonic()
    linux.send("reboot -f\n")
    linux.expect("Restarting system")
    linux.expect(USERSPACE)
    linux.expect("# ")
    assert float(shell(linux, "cat /proc/uptime").split()[0]) < time.monotonic() - started
    assert shell(linux, "nproc").split() == ["2"]
    linux.send("poweroff -f\n")
    assert linux.wait() == 0
    assert "pyvmm: " not in linux.output
