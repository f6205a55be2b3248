"""Devices of the lab given to a guest: QEMU's edu and nvme behind an emulated IOMMU.

Run in a lab that has them: scripts/test says with which options. The tests of the file go in their order.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

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
GIVEN_EDU = f"vfio,host={EDU},slot=3,id=edu"
CONFIG = MachineConfig(
    memory=256 * MIB,
    kernel=CLOUD_KERNEL,
    initrd=INITRAMFS_VFIO,
    cmdline="console=ttyS0 quiet iomem=relaxed",
    virtio_input="none",
    devices=(GIVEN_EDU, f"vfio,host={NVME},slot=4,id=nvme"),
)
GUEST_EDU, GUEST_NVME = "00:03.0", "00:04.0"
RAISE, ACKNOWLEDGE, DMA_SRC, DMA_DST, DMA_COUNT, DMA_COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
"""Registers of edu (QEMU docs/specs/edu)."""
UNEXPECTED = "No irq handler for vector"
"""What Linux says of an interrupt that nobody has asked for."""
EDU_BUFFER = 0x40000
READS = 500
NO_RAM = 0xA8000
"""Behind base memory, where a PC has none, and the window of text mode has not begun."""


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYVMM, *words], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def bound() -> None:
    for place in (EDU, NVME):
        ran = pyvmm("vfio", "bind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        assert Pci().find(place).driver == "vfio-pci"


@pytest.fixture(scope="class")
def guest(bound: None) -> Iterator[Guest]:
    with Guest(CONFIG) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        yield guest


def edu_bar(guest: Guest) -> int:
    return int(guest.shell(f"head -n 1 /sys/bus/pci/devices/0000:{GUEST_EDU}/resource").split()[0], 16)


def drive_intx(guest: Guest, times: int, each: int = 1) -> None:
    """A user's driver (uio_pci_generic): it holds the interrupt back by COMMAND until the program has answered it. At
    most *each* interrupts come of one: Linux ends those of a PIC before it serves them, the device still being up."""
    bar = edu_bar(guest)
    guest.shell("echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id; exec 3</dev/uio0")
    for count in range(1, times + 1):
        status = guest.shell(
            f"setpci -s {GUEST_EDU} COMMAND=0:400; devmem {bar + RAISE:#x} 32 1; "
            "dd bs=4 count=1 <&3 >/tmp/n 2>/dev/null; "
            f"setpci -s {GUEST_EDU} STATUS; devmem {bar + ACKNOWLEDGE:#x} 32 1; setpci -s {GUEST_EDU} STATUS"
        ).split()
        assert [int(word, 16) & PCI_STATUS_INTERRUPT for word in status] == [PCI_STATUS_INTERRUPT, 0]
        assert count <= sum(irq_counts(guest.shell("cat /proc/interrupts"))["uio_pci_generic"]) <= each * count


def drive_nvme(guest: Guest) -> None:
    """Bytes there and back, and reads one by one whose doorbells no exit hears of."""
    guest.shell("dd if=/dev/urandom of=/tmp/a bs=256k count=4; dd if=/tmp/a of=/dev/nvme0n1 bs=256k oflag=direct")
    guest.shell("dd if=/dev/nvme0n1 of=/tmp/b bs=64k count=16 iflag=direct; cmp /tmp/a /tmp/b")
    interrupts = sum(irq_counts(guest.shell("cat /proc/interrupts"))["nvme0q1"])
    exits = []
    for word in (":", ""):  # the first reads nothing: what the shell itself costs on COM1
        before = sum(vcpu.exits for vcpu in guest.machine.vcpus)
        guest.shell(f"{word} dd if=/dev/nvme0n1 of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null")
        exits.append(sum(vcpu.exits for vcpu in guest.machine.vcpus) - before)
    assert sum(irq_counts(guest.shell("cat /proc/interrupts"))["nvme0q1"]) - interrupts >= READS
    assert exits[1] - exits[0] < READS, "each is two doorbells, one to submit and one to complete"


class TestTwoDevices:
    def test_identity_and_bars(self, guest: Guest) -> None:
        said = guest.shell(f"lspci -n -vvv -s {GUEST_EDU}")
        assert "00ff: 1234:11e8 (rev 10)" in said
        assert re.search(r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) .*\[size=1M\]", said), said
        assert "MSI: Enable- Count=1/1 Maskable- 64bit+" in said
        said = guest.shell(f"lspci -n -vvv -s {GUEST_NVME}")
        assert "0108: 1b36:0010" in said, said
        assert "MSI-X: Enable+" in said, said

    def test_edu_registers_factorial_and_dma(self, guest: Guest) -> None:
        drive_edu(guest, f"/sys/bus/pci/devices/0000:{GUEST_EDU}")

    def test_edu_msi(self, guest: Guest) -> None:
        """To a vector that nobody has, which Linux complains of."""
        setpci, bar = f"setpci -s {GUEST_EDU}", edu_bar(guest)
        guest.shell(
            f"{setpci} COMMAND=406 CAP_MSI+4.l=fee00000 CAP_MSI+8.l=0 CAP_MSI+c.w=e0; {setpci} CAP_MSI+2.w=0001:0001; "
            f"devmem {bar + RAISE:#x} 32 1"
        )
        guest.until(lambda: guest.shell(f"dmesg | grep '{UNEXPECTED}'", status=None) != "", "the interrupt")
        guest.shell(f"devmem {bar + ACKNOWLEDGE:#x} 32 1; {setpci} CAP_MSI+2.w=0000:0001 COMMAND=6")

    def test_edu_intx(self, guest: Guest) -> None:
        drive_intx(guest, 3)

    def test_nvme(self, guest: Guest) -> None:
        drive_nvme(guest)
        assert warnings(guest.shell("dmesg -r | grep nvme", status=None)) == []

    def test_dma_to_no_ram_ends_at_the_iommu(self, guest: Guest) -> None:
        """And guest and machine go on."""
        bar = edu_bar(guest)
        values = ((DMA_SRC, EDU_BUFFER), (DMA_DST, NO_RAM), (DMA_COUNT, 64), (DMA_COMMAND, 3))
        guest.shell("; ".join(f"devmem {bar + register:#x} 32 {value:#x}" for register, value in values))
        guest.until(lambda: not int(guest.shell(f"devmem {bar + DMA_COMMAND:#x} 32"), 16) & 1, "the end of the DMA")
        log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
        assert re.search(rf"(DMAR: .*{EDU[5:]}.*fault addr {NO_RAM:#x}|AMD-Vi: .*IO_PAGE_FAULT)", log), log[-2000:]
        assert guest.shell("echo still here") == "still here\n"

    def test_a_snapshot_is_refused(self, guest: Guest) -> None:
        with pytest.raises(UserError, match="is a device of the host, whose state nobody can read: leave it away"):
            guest.machine.snapshot()

    def test_a_device_in_use(self, guest: Guest) -> None:
        with pytest.raises(UserError, match="is in use: another guest has a device of this group"):
            Machine(CONFIG)
        ran = pyvmm("vfio", "unbind", EDU)
        assert ran.returncode == 2 and "is in use: end the guest that has it" in ran.stderr, ran

    def test_a_reset_gives_the_guest_a_clean_device(self, guest: Guest) -> None:
        for _ in range(2):
            guest.machine.reset()
            guest.expect(USERSPACE)
            guest.expect("# ")
            drive_nvme(guest)


def test_the_same_device_twice() -> None:
    with pytest.raises(UserError, match="is given to this guest already"):
        Machine(replace(CONFIG, devices=(GIVEN_EDU, f"vfio,host={EDU},slot=5")))


def test_killed_and_run_again() -> None:
    """The kernel takes back what a process had that is killed."""
    words = [str(PYVMM), "run", "--device", GIVEN_EDU, "--debug-exit", "pyvmm", "keyboard"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1), "it runs"
        process.send_signal(signal.SIGKILL)
    for what in ("unbind", "bind"):
        ran = pyvmm("vfio", what, EDU)
        assert (ran.returncode, ran.stderr) == (0, ""), ran


@pytest.mark.parametrize(
    ("irqchip", "words", "each"),
    [("kernel", "noapic", 2), ("split", "", 1), ("user", "", 2)],
    ids=["kernel-pic", "split", "user"],
)
def test_intx_by_other_chips(irqchip: Literal["kernel", "split", "user"], words: str, each: int) -> None:
    config = replace(CONFIG, irqchip=irqchip, devices=(GIVEN_EDU,), cmdline=f"{CONFIG.cmdline} pci=nomsi {words}")
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        drive_intx(guest, 3, each)


def test_given_back() -> None:
    for place in (EDU, NVME):
        ran = pyvmm("vfio", "unbind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert Pci().find(EDU).driver is None
    with pytest.raises(UserError, match=f"pyvmm vfio bind {EDU}"):
        Machine(CONFIG)
