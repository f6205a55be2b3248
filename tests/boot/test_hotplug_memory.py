"""Memory that comes and goes under a current Linux, by ACPI."""

from __future__ import annotations

import re
from typing import Final

from pyvmm.config import MachineConfig
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS

MIB: Final = 1 << 20
GIB: Final = 1 << 30
FIRST: Final = 4 * GIB
WAIT: Final = "until {}; do usleep 20000; done"
"""In the guest."""
BLOCK: Final = "/sys/devices/system/memory/memory32"
"""Of 128 MiB, from 4 GiB up."""
FILE_MIB: Final = 180
"""More than the guest has free from the start."""


def total(guest: Guest) -> int:
    """MiB."""
    return int(guest.shell("grep MemTotal /proc/meminfo").split()[1]) >> 10


def online(guest: Guest) -> None:
    guest.shell(WAIT.format(f"[ -e {BLOCK}/state ]"))
    guest.shell(f"[ $(cat {BLOCK}/state) = online ] || echo online_movable >{BLOCK}/state")
    assert guest.shell(f"cat {BLOCK}/state").strip() == "online"


def test_memory_is_used_offlined_and_ejected() -> None:
    events: list[tuple[str, str]] = []
    with Guest(
        MachineConfig(
            memory=192 * MIB,
            memory_slots=2,
            max_memory=GIB,
            kernel=CLOUD_KERNEL,
            initrd=INITRAMFS,
            cmdline="console=ttyS0 quiet memhp_default_state=online_movable",
            virtio_input="none",
        )
    ) as guest:
        machine = guest.machine
        machine.events.add(lambda event: events.append((event.kind, event.message)))
        guest.expect(USERSPACE)
        guest.expect("# ")
        before = total(guest)

        machine.plug("memory,size=128M,id=m1")
        online(guest)
        assert total(guest) - before in range(120, 129)
        ranges = guest.shell("grep 'System RAM' /proc/iomem")
        assert re.search(r"^100000000-107ffffff : System RAM", ranges, re.MULTILINE), ranges

        guest.shell("mount -t tmpfs -o size=90% none /mnt")
        written = guest.shell(f"yes pyvmm | head -c {FILE_MIB}M >/mnt/file; md5sum </mnt/file", 120).split()[0]
        used = machine.memory.read(FIRST, 128 * MIB).count(b"pyvmm\n") * 6
        assert used > 32 * MIB, "a good part of it lies there"
        machine.unplug("m1")
        guest.until(lambda: any(kind == "eject-refused" for kind, _ in events), "a refusal")
        assert guest.shell("md5sum </mnt/file", 120).split()[0] == written
        assert "m1" in machine.parts

        guest.shell("rm /mnt/file; umount /mnt")
        for _ in range(2):
            machine.unplug("m1")
            guest.until(lambda: "m1" not in machine.parts, "an ejection")
            assert guest.shell(f"ls -d {BLOCK} 2>/dev/null; grep -c 100000000- /proc/iomem").split() == ["0"]
            assert total(guest) == before
            machine.plug("memory,size=128M,id=m1")
            online(guest)
        machine.plug("memory,size=256M,id=m2")
        guest.shell(WAIT.format(f"[ -e {BLOCK[:-1]}4/state ]"))
        machine.unplug("m1")
        machine.unplug("m2")
        guest.until(lambda: not {"m1", "m2"} & machine.parts.keys(), "two ejections")
        assert warnings(guest.shell("dmesg -r")) == []
