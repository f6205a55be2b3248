"""Devices of the lab given to a guest: QEMU's edu and nvme behind an emulated IOMMU.

Run in a lab that has them: scripts/test says with which options.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine
from pyvmm.pci.regs import PCI_STATUS_INTERRUPT
from pyvmm.vfio.sysfs import Pci
from tests.boot.test_pci import drive_edu
from tests.rig.guest import USERSPACE, Guest, irq_counts, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_VFIO, PYVMM

MIB = 1 << 20
EDU, NVME = "0000:00:08.0", "0000:00:0a.0"  # in the lab
CONFIG = MachineConfig(
    memory=256 * MIB,
    kernel=CLOUD_KERNEL,
    initrd=INITRAMFS_VFIO,
    cmdline="console=ttyS0 quiet iomem=relaxed",
    virtio_input="none",
    devices=(f"vfio,host={EDU},slot=3,id=edu", f"vfio,host={NVME},slot=4,id=nvme"),
)
GUEST_EDU, GUEST_NVME = "00:03.0", "00:04.0"
RAISE, ACKNOWLEDGE = 0x60, 0x64
"""Registers of edu (QEMU docs/specs/edu): raise an interrupt, clear it."""


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYVMM, *words], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def bound() -> None:
    for place in (EDU, NVME):
        ran = pyvmm("vfio", "bind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        assert "-> vfio-pci" in ran.stdout


@pytest.fixture(scope="module")
def guest(bound: None) -> Iterator[Guest]:
    with Guest(CONFIG) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        yield guest


def test_identity_and_bars(guest: Guest) -> None:
    said = guest.shell(f"lspci -n -vvv -s {GUEST_EDU}")
    assert "00ff: 1234:11e8 (rev 10)" in said
    assert re.search(r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) .*\[size=1M\]", said), said
    assert "MSI: Enable- Count=1/1 Maskable- 64bit+" in said
    said = guest.shell(f"lspci -n -vvv -s {GUEST_NVME}")
    assert "0108: 1b36:0010" in said, said
    assert "MSI-X: Enable+" in said, said


def edu_bar(guest: Guest) -> int:
    return int(guest.shell(f"head -n 1 /sys/bus/pci/devices/0000:{GUEST_EDU}/resource").split()[0], 16)


def test_edu_registers_factorial_and_dma(guest: Guest) -> None:
    drive_edu(guest, f"/sys/bus/pci/devices/0000:{GUEST_EDU}")


def test_edu_msi(guest: Guest) -> None:
    """To a vector that nobody has, which Linux complains of."""
    setpci, bar = f"setpci -s {GUEST_EDU}", edu_bar(guest)
    guest.shell(
        f"{setpci} COMMAND=406 CAP_MSI+4.l=fee00000 CAP_MSI+8.l=0 CAP_MSI+c.w=e0; {setpci} CAP_MSI+2.w=0001:0001; "
        f"devmem {bar + RAISE:#x} 32 1"
    )
    guest.until(lambda: "No irq handler for vector" in guest.shell("dmesg"), "the interrupt")
    guest.shell(f"devmem {bar + ACKNOWLEDGE:#x} 32 1; {setpci} CAP_MSI+2.w=0000:0001 COMMAND=6")


def drive_intx(guest: Guest, times: int) -> None:
    """A user's driver (uio_pci_generic): it holds the interrupt back by COMMAND until the program has answered it."""
    bar = edu_bar(guest)
    guest.shell("echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id; exec 3</dev/uio0")
    for count in range(1, times + 1):
        status = guest.shell(
            f"setpci -s {GUEST_EDU} COMMAND=0:400; devmem {bar + RAISE:#x} 32 1; "
            "dd bs=4 count=1 <&3 >/tmp/n 2>/dev/null; "
            f"setpci -s {GUEST_EDU} STATUS; devmem {bar + ACKNOWLEDGE:#x} 32 1; setpci -s {GUEST_EDU} STATUS"
        ).split()
        assert [int(word, 16) & PCI_STATUS_INTERRUPT for word in status] == [PCI_STATUS_INTERRUPT, 0]
        assert sum(irq_counts(guest.shell("cat /proc/interrupts"))["uio_pci_generic"]) == count


def test_edu_intx(guest: Guest) -> None:
    drive_intx(guest, 3)


def test_nvme(guest: Guest) -> None:
    assert "nvme0n1" in guest.shell("ls /dev")
    guest.shell("dd if=/dev/urandom of=/tmp/a bs=1M count=4; dd if=/tmp/a of=/dev/nvme0n1 bs=1M oflag=direct")
    guest.shell("dd if=/dev/nvme0n1 of=/tmp/b bs=1M count=4 iflag=direct; cmp /tmp/a /tmp/b")
    counts = irq_counts(guest.shell("cat /proc/interrupts"))
    assert sum(counts["nvme0q1"]) > 0
    log = [line for line in warnings(guest.shell("dmesg -r", status=None)) if "nvme" in line]
    assert log == []


def test_a_snapshot_is_refused(guest: Guest) -> None:
    with pytest.raises(UserError, match="is a device of the host, whose state nobody can read: leave it away"):
        guest.machine.snapshot()


def test_a_device_in_use_and_one_given_twice(guest: Guest) -> None:
    with pytest.raises(UserError, match="is in use: another guest has a device of this group"):
        Machine(CONFIG)
    assert "-> " not in pyvmm("vfio", "list").stdout


def test_given_back() -> None:
    for place in (EDU, NVME):
        ran = pyvmm("vfio", "unbind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert Pci().find(EDU).driver is None
    with pytest.raises(UserError, match=f"pyvmm vfio bind {EDU}"):
        Machine(CONFIG)
