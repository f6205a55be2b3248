"""Debian 13's Linux (6.12), once under each irqchip: it boots, and finds the processor that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyvmm.config import Irqchip, MachineConfig
from pyvmm.machine.outcome import End
from pyvmm.vcpu.dependencies import closed
from pyvmm.vcpu.features import FEATURES
from tests.rig.guest import USERSPACE, Guest, irq_counts, warnings
from tests.rig.lab import INITRAMFS, TRIXIE_KERNEL

MIB = 1 << 20
BOOT = 600.0
"""Seconds, most of which only a busy host needs."""
PROCESSORS: dict[Irqchip, str] = {
    "kernel": "host",
    "split": "host,+sse4_2,-rdrand,-sse4a,phys-bits=36",
    "user": "host,-aes,-smap",
}


WITHOUT_APIC = re.compile(r"setting ELCR to 0200 \(from 0e00\)|software events only")
"""What Linux says of any PC whose PCI interrupts go to a PIC as a BIOS leaves it, and that has no APIC for counters."""


@pytest.fixture(scope="module", params=PROCESSORS)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    # The processor is AMD's, and the machine has no _CPC object: cpufreq's driver would warn of that.
    config = MachineConfig(
        memory=256 * MIB,
        kernel=TRIXIE_KERNEL,
        initrd=INITRAMFS,
        cmdline="console=ttyS0 quiet initcall_blacklist=amd_pstate_init",
        irqchip=request.param,
        cpu=PROCESSORS[request.param],
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE, BOOT)
        guest.expect("# ")
        yield guest


def cpuinfo(guest: Guest, field: str) -> str:
    return guest.shell(f"grep -m1 '^{field}' /proc/cpuinfo").partition(":")[2].strip()


def test_the_kernel(guest: Guest) -> None:
    assert guest.shell("uname -r").startswith("6.12.")
    log = warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None))
    if guest.machine.config.irqchip == "user":
        log = [line for line in log if not WITHOUT_APIC.search(line)]
    assert log == []


def test_its_interrupts(guest: Guest) -> None:
    table = guest.shell("cat /proc/interrupts")
    pic = guest.machine.config.irqchip == "user"
    assert re.search(rf"4: .*{'XT-PIC' if pic else 'IO-APIC'} +(4-edge +)?ttyS0", table), table
    counts = irq_counts(table)
    assert sum(counts["4"]) > 10 and sum(counts["timer"] if pic else counts["LOC"]) > 10
    assert counts["ERR"] == [0]


def test_no_feature_without_what_it_needs(guest: Guest) -> None:
    """The lab's KVM offers AVX and its kin, but not XSAVE."""
    flags = set(cpuinfo(guest, "flags").split()) & FEATURES.keys()
    unseen = {name for name in FEATURES if name.startswith("xstate:")}
    assert {"fpu", "sse4_2", "pclmulqdq", "lm", "nx"} <= flags
    assert flags <= closed(flags | unseen)
    assert flags.isdisjoint({"xsave", "avx", "avx2", "fma", "f16c", "vaes", "pku"})


def test_the_processor_that_was_asked_for(guest: Guest) -> None:
    flags = set(cpuinfo(guest, "flags").split())
    match guest.machine.config.irqchip:
        case "kernel":
            assert {"hypervisor", "rdrand", "sse4a", "x2apic"} <= flags
        case "split":
            assert flags.isdisjoint({"rdrand", "sse4a"}) and cpuinfo(guest, "address sizes").startswith(
                "36 bits physical"
            )
            assert "800000000-fffffffff : PCI Bus 0000:00" in guest.shell("cat /proc/iomem")
        case "user":
            assert flags.isdisjoint({"aes", "smap", "apic", "x2apic", "tsc_deadline_timer"})


def test_power_off(guest: Guest) -> None:
    guest.send("poweroff -f\n")
    assert guest.wait().end is End.POWER_OFF
