"""Devices that come and go under a current Linux: in slots of bus 0 by ACPI, behind root ports by PCI Express.

PYVMM_SOAK_HOTPLUG sets how often each kind comes and goes at each place (default 3; scripts/soak).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.input import codes as ic
from pyvmm.virtio.net import VirtioNet
from tests.rig.events import Events
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_NET, ROOT
from tests.rig.net_driver import OneWire, PeerWire
from tests.rig.plugging import WAIT, flat, unplug
from tests.rig.vhost import FakeVhost

MIB: Final = 1 << 20
MAC: Final = "52:54:00:12:34:56"
PVPANIC: Final = f"{ROOT / 'docs' / 'examples' / 'pvpanic.py'}:PvPanic"
KEYBOARD: Final = "Aero Virtio Keyboard"
TOO_EARLY: Final = "block device autoloading is deprecated and will be removed."


class Linux(Guest):
    """With two root ports, and nothing but what a test plugs in; *image* is a disk."""

    def __init__(self, directory: Path, cmdline: str = "", **more: object) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(os.urandom(65536))
        self.sum = hashlib.md5(self.image.read_bytes()).hexdigest()
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS_NET,
                cmdline=f"console=ttyS0 quiet {cmdline}",
                root_ports=2,
                virtio_input="none",
                **more,  # type: ignore[arg-type]
            )
        )
        self.expect(USERSPACE)
        self.expect("# ")

    def disk(self, name: str, place: str) -> None:
        self.machine.plug(f"virtio-blk,path={self.image},readonly,id={name}{place}")

    def reads_disk(self, node: str = "vda") -> None:
        """The node is there a little before it can be opened; who opens it then makes Linux say TOO_EARLY."""
        wait = WAIT.format(f"sum=$(md5sum </dev/{node} 2>/dev/null)")
        assert self.shell(f"({wait}; echo $sum) 2>/dev/null").split()[0] == self.sum


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    with Linux(tmp_path_factory.mktemp("hotplug"), cpus=2) as guest:
        yield guest


@pytest.mark.parametrize("place", ["", ",port=0"], ids=["acpi", "express"])
def test_a_disk_is_read(guest: Linux, place: str) -> None:
    def round_trip() -> None:
        guest.disk("d1", place)
        guest.reads_disk()
        unplug(guest, "d1")

    flat(guest, round_trip)


@pytest.mark.parametrize("place", ["", ",port=1"], ids=["acpi", "express"])
def test_a_key_is_typed(guest: Linux, place: str) -> None:
    def round_trip() -> None:
        guest.machine.plug(f"virtio-keyboard,id=k1{place}")
        guest.shell(WAIT.format(f"grep -q '{KEYBOARD}' /proc/bus/input/devices"))
        events = Events(guest, KEYBOARD)
        guest.machine.keyboard.press("a")
        assert (ic.EV_KEY, ic.KEY_A, 1) in events.read(4)
        unplug(guest, "k1")

    flat(guest, round_trip)


def test_a_peer_is_pinged(guest: Linux) -> None:
    def round_trip() -> None:
        guest.machine.plug(VirtioNet("user", OneWire(PeerWire()), FakeVhost(guest.machine.memory), mac=MAC))
        guest.shell(
            f"{WAIT.format('[ -e /sys/class/net/eth0 ]')}; ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up;"
            " ping -c 1 -w 30 10.0.0.1 >/dev/null"
        )
        unplug(guest, "VirtioNet")

    flat(guest, round_trip)


def test_several_at_once_of_other_kinds(guest: Linux) -> None:
    """An entropy source and an NE2000, which needs I/O ports, behind ports; a device of the user's own on bus 0."""
    machine = guest.machine
    machine.plug("virtio-rng,id=rng,port=0")
    machine.plug(f"ne2k,to=socket:{guest.image.parent / 'wire'},id=ne,port=1")
    machine.plug(f"{PVPANIC},id=own")
    said = guest.shell(
        f"cd /sys/bus/pci/devices; {WAIT.format('[ -e 0000:02:00.0/resource -a -e 0000:00:01.0/capability ]')};"
        "cat 0000:02:00.0/vendor 0000:00:01.0/capability; head -n 1 0000:02:00.0/resource; cd /;"
        f"{WAIT.format('grep -q virtio /sys/class/misc/hw_random/rng_current')}; head -c 8 /dev/hwrng | wc -c"
    ).split()
    assert said[0] == "0x10ec" and int(said[1], 0) == 3 and said[-1] == "8"
    assert 0xC000 <= int(said[2], 0) < 0x10000, "its BAR is in the port's window"
    unplug(guest, "own", "rng", "ne")


def test_a_device_is_pulled_out(guest: Linux) -> None:
    """By force, from behind a port; another takes its place. It is no virtio device: Linux 6.1 waits for ever for one
    that is gone to say that it is reset. On bus 0 there is no such thing."""
    machine, there = guest.machine, "/sys/bus/pci/devices/0000:01:00.0"
    for _ in range(2):
        machine.plug(f"{PVPANIC},id=own,port=0")
        guest.shell(WAIT.format(f"[ -e {there}/capability ]"))
        assert machine.unplug("own", force=True) and "own" not in machine.parts
        guest.shell(WAIT.format(f"[ ! -e {there} ]"))
    guest.disk("d1", ",port=0")
    guest.disk("d2", "")
    guest.reads_disk("vda")
    guest.reads_disk("vdb")
    with pytest.raises(UserError, match="d2 is on bus 0, where only the guest can let go of it"):
        machine.unplug("d2", force=True)
    unplug(guest, "d1", "d2")


def test_no_slot_is_short_of_anything_and_no_driver_complains(guest: Linux) -> None:
    log = guest.shell("dmesg -r")
    assert "no space" not in log and "failed to assign" not in log
    assert [line for line in warnings(log) if not line.endswith(TOO_EARLY)] == []
    assert set(guest.shell("ls /sys/bus/pci/slots").split()) == {*map(str, range(1, 10)), "32", "33"}


def test_snapshots_with_devices_that_have_come(guest: Linux, tmp_path: Path) -> None:
    """To go back to in memory, and from a file in another machine; not to one with other devices."""
    machine = guest.machine
    before = machine.snapshot()
    guest.disk("d1", "")
    guest.disk("d2", ",port=1")
    guest.reads_disk("vda")
    guest.reads_disk("vdb")
    with pytest.raises(UserError, match="device d1 was not there when the snapshot was taken: unplug it first"):
        machine.restore(before)
    now = machine.snapshot()
    now.save(tmp_path / "saved")
    guest.shell("touch /tmp/later")
    machine.restore(now)
    guest.shell("[ ! -e /tmp/later ]; echo 3 >/proc/sys/vm/drop_caches")
    guest.reads_disk("vda")
    guest.reads_disk("vdb")
    unplug(guest, "d1", "d2")
    with pytest.raises(UserError, match="device d1 was there when the snapshot was taken: plug in virtio-blk,"):
        machine.restore(now)
    machine.pause()
    with Guest.restored(tmp_path / "saved") as other:
        other.shell("echo 3 >/proc/sys/vm/drop_caches")
        for node in ("vda", "vdb"):
            assert other.shell(f"md5sum </dev/{node}").split()[0] == guest.sum
        for name in ("d1", "d2"):
            other.machine.unplug(name)
        other.until(lambda: "d1" not in other.machine.board.devices, "an ejection")
        other.until(lambda: "d2" not in other.machine.board.devices, "an ejection")
    machine.resume()


def test_a_disk_in_a_slot_outlives_sleep_and_is_put_into_d3hot_before_it_goes(guest: Linux) -> None:
    """By _PS3: Linux does not use it for sleep where there is an _EJ0."""
    machine = guest.machine
    guest.disk("d1", "")
    guest.reads_disk()
    guest.send("echo mem >/sys/power/state; echo awake $?\n")
    guest.until(lambda: machine.call(lambda: machine.board.acpi_pm.asleep), "sleep")
    machine.power_button()
    guest.expect(re.compile(r"awake 0\r*\n"))
    guest.shell("echo 3 >/proc/sys/vm/drop_caches")
    guest.reads_disk()
    guest.trace.clear()
    machine.trace.on("pci-hotplug")
    unplug(guest, "d1")
    machine.trace.off("pci-hotplug")
    slot = [line.partition("slot ")[2] for line in guest.trace if "slot " in line]
    assert slot == ["0x01 is in D3hot", "0x01 is ejected"]
    guest.disk("d1", "")
    guest.reads_disk()
    unplug(guest, "d1")


def test_a_reset_keeps_them_and_what_comes_while_it_boots_is_found(guest: Linux) -> None:
    """What was asked for has gone. Linux finds what comes before it looks, and is told once it has ACPI."""
    machine, hotplug = guest.machine, guest.machine.board.hotplug
    guest.disk("d1", "")
    guest.disk("d2", ",port=0")
    guest.reads_disk("vda")
    with machine.paused():
        assert not machine.unplug("d1")
        machine.reset()
        assert "d1" not in machine.parts and "d2" in machine.parts
        guest.disk("d3", "")

    def comes() -> bool:
        try:
            guest.disk("d4", ",slot=9")
        except UserError as refused:
            assert "its guest has found slot 9 empty and has not turned on ACPI" in str(refused)
        return "d4" in machine.parts

    guest.until(lambda: machine.board.acpi_pm.acpi_enabled or not hotplug.finds(9), "a look at the slots")
    guest.until(comes, "ACPI")
    guest.expect(USERSPACE)
    guest.expect("# ")
    for node in ("vda", "vdb", "vdc"):
        guest.reads_disk(node)
    unplug(guest, "d2", "d3", "d4")


def test_without_acpi_nothing_is_half_done(tmp_path: Path) -> None:
    """A guest that would not hear of it is not asked, and gets nothing that it would not find, but what is behind a
    port."""
    with Linux(tmp_path, "acpi=off", devices=("virtio-rng,id=r1",)) as guest:
        before = dict(guest.machine.parts)
        with pytest.raises(UserError, match="its guest has found slot 2 empty and has not turned on ACPI"):
            guest.disk("d1", "")
        with pytest.raises(UserError, match="device r1: its guest does not use ACPI, and would not hear of it"):
            guest.machine.unplug("r1")
        assert guest.machine.parts == before
        guest.disk("d1", ",port=0")
        guest.reads_disk()
        unplug(guest, "d1")
