"""CPUs that come and go under a current Linux, with load and interrupts on them, in one boot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.event import MachineEvent
from tests.rig.guest import USERSPACE, Guest, irq_counts, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS

MIB = 1 << 20
CPUS = "/sys/devices/system/cpu"
LOAD = "taskset -c {} sh -c 'while :; do :; done' & "


class Linux(Guest):
    """With two CPUs, and room for two more."""

    def __init__(self) -> None:
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                cpus=2,
                max_cpus=4,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS,
                cmdline="console=ttyS0 quiet",
                virtio_input="none",
            )
        )
        self.refused: list[str] = []
        self.machine.events.add(self._hear)
        self.started()

    def _hear(self, event: MachineEvent) -> None:
        if event.kind.endswith("-refused"):
            self.refused.append(event.message)

    def started(self) -> None:
        self.expect(USERSPACE)
        self.expect("# ")

    @property
    def online(self) -> str:
        return self.shell(f"cat {CPUS}/online").strip()

    def plug(self) -> int:
        """A CPU that the guest has taken and turned on, which nobody does by himself without udev."""
        cpu = int(self.machine.plug("cpu").removeprefix("cpu"))
        self.shell(f"until [ -e {CPUS}/cpu{cpu}/online ]; do usleep 20000; done; echo 1 >{CPUS}/cpu{cpu}/online")
        return cpu

    def gone(self, cpu: int) -> None:
        self.until(lambda: cpu not in self.machine.board.sockets.present, f"the ejection of CPU {cpu}")
        self.shell(f"until [ ! -e {CPUS}/cpu{cpu} ]; do usleep 20000; done")

    def busy(self, cpu: int) -> None:
        """Wait until that CPU has worked for a while."""
        ticks: Callable[[], int] = lambda: int(self.shell(f"grep '^cpu{cpu} ' /proc/stat").split()[1])  # noqa: E731
        before = ticks()
        self.until(lambda: ticks() >= before + 5, f"work of CPU {cpu}")


@pytest.fixture(scope="module")
def guest() -> Iterator[Linux]:
    with Linux() as guest:
        yield guest


def test_one_comes_works_goes_and_comes_again(guest: Linux) -> None:
    """It goes under load, with the serial port's interrupt on it."""
    assert guest.shell(f"cat {CPUS}/possible {CPUS}/online").split() == ["0-3", "0-1"]
    for _ in range(2):
        assert guest.plug() == 2
        assert guest.online == "0-2"
        guest.shell(LOAD.format(2) + "irq=$(sed -n 's/^ *\\([0-9]*\\):.*ttyS0$/\\1/p' /proc/interrupts)")
        before = irq_counts(guest.shell("cat /proc/interrupts"))["ttyS0"]
        guest.shell("echo 2 >/proc/irq/$irq/smp_affinity_list; cat /proc/irq/$irq/effective_affinity_list")
        guest.busy(2)
        after = irq_counts(guest.shell("cat /proc/interrupts"))["ttyS0"]
        assert after[2] > before[2], "interrupts reach it"
        assert not guest.machine.unplug("cpu2"), "the guest is asked"
        guest.gone(2)
        assert guest.online == "0-1"
        guest.shell("kill %1; wait")


def test_a_guest_lets_go_by_itself(guest: Linux) -> None:
    """Of one that it was given, and of one that was there from the start; each comes again."""
    assert guest.plug() == 2
    for cpu in (2, 1):
        path = f"$(dirname $(grep -l '_SB_.C00{cpu}' /sys/bus/acpi/devices/*/path))"
        guest.shell(f"echo 0 >{CPUS}/cpu{cpu}/online; echo 1 >{path}/eject")
        guest.gone(cpu)
    assert guest.online == "0"
    assert (guest.plug(), guest.online) == (1, "0-1")


def test_a_guest_that_must_not_lets_go_of_none(guest: Linux) -> None:
    enabled = "/sys/firmware/acpi/hotplug/processor/enabled"
    guest.shell(f"echo 0 >{enabled}")
    guest.machine.unplug("cpu1")
    guest.until(lambda: bool(guest.refused), "a refusal")
    assert guest.refused == ["cpu1: the guest does not let go of it: it does not support that (_OST status 0x80)"]
    assert guest.online == "0-1"
    guest.shell(f"echo 1 >{enabled}")


def test_no_driver_complains_and_the_clocks_agree(guest: Linux) -> None:
    log = guest.shell("dmesg -r")
    complaints = [line for line in warnings(log) if not re.search(r"process \d+ \(\w+\) no longer affine", line)]
    assert complaints == []
    assert "TSC warp" not in log


def test_a_reset_starts_the_cpus_that_there_are(guest: Linux) -> None:
    guest.machine.reset()
    guest.started()
    assert guest.online == "0-1"
    assert guest.plug() == 2
