"""Memory that comes and goes under a current Linux, by ACPI; and suspend to RAM."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

import pytest

from pyvmm.config import MachineConfig
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS

MIB: Final = 1 << 20
GIB: Final = 1 << 30
FIRST: Final = 4 * GIB
WAIT: Final = "until {}; do usleep 20000; done"
"""In the guest."""
BLOCK: Final = "/sys/devices/system/memory/memory{}"
"""Of 128 MiB; 32 is at 4 GiB."""
PIECE: Final = b"pyvmm\n" * (MIB // 6)
PIECES: Final = 160
"""Of a file; more than the guest has free from the start."""


class Linux(Guest):
    """With two slots for memory."""

    def __init__(self) -> None:
        super().__init__(
            MachineConfig(
                memory=192 * MIB,
                memory_slots=2,
                max_memory=GIB,
                cpus=2,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS,
                cmdline="console=ttyS0 quiet memhp_default_state=online_movable",
                virtio_input="none",
            )
        )
        self.events: list[tuple[str, str]] = []
        self.machine.events.add(lambda event: self.events.append((event.kind, event.message)))
        self.expect(USERSPACE)
        self.expect("# ")

    def total(self) -> int:
        """MiB."""
        return int(self.shell("grep MemTotal /proc/meminfo").split()[1]) >> 10

    def plug(self, name: str, size: int, first: int) -> None:
        """So many MiB, whose first block has number *first*."""
        self.machine.plug(f"memory,size={size}M,id={name}")
        for number in range(first, first + size // 128):
            self.shell(WAIT.format(f"grep -q online {BLOCK.format(number)}/state 2>/dev/null"))

    def told(self, kind: str) -> str:
        """Wait for such an event; its message."""
        self.until(lambda: any(told == kind for told, _ in self.events), kind)
        return next(message for told, message in self.events if told == kind)

    def gone(self, *names: str) -> None:
        self.until(lambda: self.machine.parts.keys().isdisjoint(names), f"an ejection of {', '.join(names)}")

    def sleeps(self) -> None:
        """Until it is woken."""
        self.events.clear()
        self.send("echo mem >/sys/power/state; echo awake $?\n")
        self.told("sleep")

    def is_awake(self) -> str:
        """Once it runs again; what woke it."""
        self.expect(re.compile(r"awake 0\r*\n"))
        return self.told("wake")


@pytest.fixture(scope="module")
def guest() -> Iterator[Linux]:
    with Linux() as guest:
        yield guest


def test_memory_is_filled_emptied_and_ejected(guest: Linux) -> None:
    machine, before = guest.machine, guest.total()
    guest.plug("m1", 128, 32)
    assert guest.total() - before in range(120, 129)
    iomem = guest.shell("grep 'System RAM' /proc/iomem")
    assert re.search(r"^100000000-107ffffff : System RAM", iomem, re.MULTILINE), iomem

    guest.shell(f"mount -t tmpfs -o size=90% none /mnt; yes pyvmm | head -c {len(PIECE)} >/tmp/piece")
    guest.shell(f"for n in $(seq {PIECES}); do cat /tmp/piece; done >/mnt/file")
    assert machine.memory.read(FIRST, 128 * MIB).count(b"\npyvmm\n") * 6 > 32 * MIB, "a good part of it lies there"
    guest.shell("rm /mnt/file; for n in $(seq 16); do cat /tmp/piece; done >/mnt/file")
    machine.unplug("m1")
    guest.gone("m1")
    assert guest.shell("md5sum </mnt/file").split()[0] == hashlib.md5(PIECE * 16).hexdigest(), "it was moved elsewhere"
    guest.shell("rm /mnt/file; umount /mnt")
    guest.plug("m1", 128, 32)
    guest.plug("m2", 256, 33)
    machine.unplug("m1")
    machine.unplug("m2")
    guest.gone("m1", "m2")
    assert guest.shell(f"ls -d {BLOCK.format(32)} 2>/dev/null; grep -c 100000000- /proc/iomem", status=1) == "0\n"
    assert guest.total() == before


def test_it_sleeps_and_wakes_with_what_was_plugged_in(guest: Linux) -> None:
    guest.plug("m1", 128, 32)
    guest.shell("mount -t tmpfs -o size=90% none /mnt; for n in $(seq 16); do cat /bin/busybox; done >/mnt/file")
    written = guest.shell("md5sum </mnt/file")
    guest.sleeps()
    guest.machine.power_button()
    assert guest.is_awake() == "power button"
    guest.shell("echo +15 >/sys/class/rtc/rtc0/wakealarm")
    guest.sleeps()
    assert guest.is_awake() == "RTC alarm"
    assert guest.shell("md5sum </mnt/file") == written
    assert guest.shell("cat /sys/devices/system/cpu/online").strip() == "0-1"
    guest.shell("umount /mnt")
    guest.machine.unplug("m1")
    guest.gone("m1")


def test_the_kernel_has_nothing_to_complain_of(guest: Linux) -> None:
    assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []
