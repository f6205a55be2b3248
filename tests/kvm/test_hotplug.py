"""Devices that come and go in a machine that runs; what its guest would do, the tests do through the board's ports."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pyvmm import Machine, MachineConfig, PciDevice
from pyvmm.board import layout
from pyvmm.board.dimm import Dimm
from pyvmm.devices.pci_hotplug import D0, D3HOT, PCI_DOWN_BASE, PCI_EJ_BASE, PCI_UP_BASE
from pyvmm.errors import UserError
from pyvmm.pci import regs
from pyvmm.pci.testdev import PciTestdev
from pyvmm.units import GIB
from pyvmm.virtio.rng import VirtioRng
from tests.rig.hotplug_driver import HotplugDriver

IDIO16 = f"{Path(__file__).resolve().parents[2] / 'docs' / 'examples' / 'idio16.py'}:Idio16"
FAULTY = """
from pyvmm import PciDevice

class Attached(PciDevice):
    vendor_id, device_id = 0x1234, 1

    def attached(self):
        raise RuntimeError("not today")

class Reset(PciDevice):
    vendor_id, device_id = 0x1234, 3
    plugged = False

    def attached(self):
        self.plugged = True

    def reset(self):
        if self.plugged:
            raise RuntimeError("not today either")

class Closed(PciDevice):
    vendor_id, device_id = 0x1234, 2

    def close(self):
        raise RuntimeError("not today either")
"""


@contextmanager
def running(**config: object) -> Iterator[HotplugDriver]:
    with Machine(MachineConfig(guest="keyboard", root_ports=2, **config)) as machine:  # type: ignore[arg-type]
        assert machine.wait(lambda: "> " in machine.screen, 60)
        yield HotplugDriver(machine)


def test_a_device_comes_to_bus_0_and_goes_when_the_guest_ejects_it() -> None:
    with running() as now:
        now.turn_acpi_on()
        device = now.machine.plug("virtio-rng,id=r1")
        assert now.machine.parts["r1"] is device and isinstance(device, VirtioRng)
        assert now.take_event() and now.read(PCI_UP_BASE) == 1 << 1
        assert now.machine.board.pci.find(0, regs.pci_devfn(1, 0)) is not None
        assert now.machine.unplug("r1") is False
        assert now.take_event() and now.read(PCI_DOWN_BASE) == 1 << 1
        assert "r1" in now.machine.parts, "it waits for the guest"
        assert now.machine.unplug("r1") is False and now.take_event(), "one may ask again"
        now.write(PCI_EJ_BASE, 1 << 1)
        assert now.gone("r1")
        assert now.machine.board.pci.find(0, regs.pci_devfn(1, 0)) is None
        assert [event for event in now.events if "plug" in event[0]] == [("plugged", "r1"), ("unplugged", "r1")]
        now.machine.plug("virtio-rng,id=r1")
        assert now.read(PCI_UP_BASE) == 1 << 1


def test_a_device_comes_to_a_port_and_goes_when_the_guest_looks_again() -> None:
    with running() as now:
        now.express(regs.PCI_EXP_SLTCTL, 0x1028)
        now.machine.plug("virtio-rng,id=r1,port=0")
        assert now.express(regs.PCI_EXP_SLTSTA) == 0x148
        now.express(regs.PCI_EXP_SLTSTA, 0x108)
        assert now.machine.unplug("r1") is False
        now.express(regs.PCI_EXP_SLTSTA, 0x108)
        assert "r1" in now.machine.parts
        assert not now.express(regs.PCI_EXP_LNKSTA) & regs.PCI_EXP_LNKSTA_DLLLA
        assert now.gone("r1")


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_nothing_is_left_behind(irqchip: str, tmp_path: Path) -> None:
    """Descriptors, addresses, routes and names after the first and after the twentieth time."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(65536))
    devices = (
        "virtio-rng",
        f"virtio-blk,path={image}",
        "virtio-keyboard",
        f"ne2k,to=socket:{tmp_path / 'net'}",
        IDIO16,
    )

    def held(machine: Machine) -> tuple[object, ...]:
        gc.collect()
        board = machine.board
        ranges = len(board.mmio.ranges), len(board.pio.ranges)
        return len(os.listdir("/proc/self/fd")), ranges, sorted(board.parts.with_state()), sorted(board.devices)

    def round_trip(now: HotplugDriver) -> None:
        for device in devices:
            now.machine.plug(f"{device},id=it")
            now.machine.unplug("it")
            now.write(PCI_EJ_BASE, 0xFFFFFFFF)
            assert now.gone("it")
            now.machine.plug(f"{device},id=it,port=1")
            now.machine.call(lambda: now.machine.board.pci.parts())
            assert now.machine.unplug("it", force=True)

    with running(irqchip=irqchip) as now:
        now.turn_acpi_on()
        round_trip(now)
        before = held(now.machine)
        for _ in range(20):
            round_trip(now)
        assert held(now.machine) == before


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("root-port", "device root-port: it comes with the machine, and cannot be plugged in later"),
        ("testdev", "device testdev: it comes with the machine"),
        ("ata-disk,path=/dev/null", "it comes with the machine"),
        ("virtio-rang", "name one that there is: did you mean virtio-rng?"),
        ("virtio-rng,slot=0x1e", "nothing can be plugged into slot 30 later, but into 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("virtio-rng,slot=1", "slot 1 is taken by there: leave slot away"),
        ("virtio-rng,port=1", "root port 1 is taken by virtio-rng: leave port away"),
        ("virtio-rng,port=2", "no root port 2 (there are 2, from 0 up): say how many root_ports, or leave port away"),
        ("virtio-rng,id=there", "there is a device there already"),
        ("virtio-rng,speed=9", "virtio-rng has no key speed"),
        ("virtio-blk,path=/no/such/disk", "disk /no/such/disk: there is no such file"),
        ("{faulty}:Attached", "not today"),
    ],
)
def test_what_cannot_come_leaves_nothing(device: str, why: str, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY)
    with running(devices=("virtio-rng,id=there,slot=1", "virtio-rng,port=1")) as now:

        def held() -> tuple[object, ...]:
            gc.collect()
            fds = len(os.listdir("/proc/self/fd"))
            return fds, dict(now.machine.parts), now.machine.board.pci.all_functions(), now.read(PCI_UP_BASE)

        before = held()
        with pytest.raises(UserError) as refused:
            now.machine.plug(device.format(faulty=faulty))
        assert why in str(refused.value)
        assert "\n" not in str(refused.value)
        assert held() == before
        now.machine.plug("virtio-rng")
        assert now.read(PCI_UP_BASE) == 1 << 2


def test_what_cannot_go_stays() -> None:
    with running(devices=("virtio-rng,id=r1", "virtio-rng,id=r2,port=0", "testdev")) as now:
        for name, force, why in (
            ("r1", False, "its guest does not use ACPI, and would not hear of it: end the machine to take it out"),
            ("r1", True, "r1 is on bus 0, where only the guest can let go of it: leave force away"),
            ("r2", False, "its guest has no driver for the slot of a PCI Express port: pull it out by force"),
            ("root-port", True, "root-port came with the machine, and cannot be unplugged"),
            ("testdev", False, "testdev came with the machine, and cannot be unplugged"),
            ("r3", False, "no device r3: there are: r1, r2, root-port, root-port-2, testdev"),
        ):
            with pytest.raises(UserError, match=why):
                now.machine.unplug(name, force)
        assert {"r1", "r2", "testdev"} <= now.machine.parts.keys()
        with pytest.raises(UserError, match=r"plug\(\) waits for the machine"):
            now.machine.call(lambda: now.machine.plug("virtio-rng"))
        with pytest.raises(UserError, match=r"unplug\(\) waits for the machine"):
            now.machine.call(lambda: now.machine.unplug("r1"))
        now.machine.end()
        now.machine.run()
        with pytest.raises(UserError, match="the machine has ended"):
            now.machine.plug("virtio-rng")


def test_devices_of_the_start_go_too_and_where_there_is_no_slot_a_port_is_taken() -> None:
    with running(devices=("virtio-rng,id=r1", "virtio-rng,id=r2,slot=0x12")) as now:
        now.turn_acpi_on()
        for name, slot in (("r1", 1), ("r2", 0x12)):
            assert now.machine.unplug(name) is False
            now.write(PCI_EJ_BASE, 1 << slot)
            assert now.gone(name)
        for _ in range(12):
            now.machine.plug("virtio-rng")
        assert len(now.port(0).child.functions) == len(now.port(1).child.functions) == 1
        with pytest.raises(UserError, match="no slot is free: unplug a device, or start with more --root-ports"):
            now.machine.plug("virtio-rng")


@pytest.mark.parametrize("kind", ["Closed", "Reset"])
def test_a_device_whose_close_or_reset_raises_is_gone_all_the_same(kind: str, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY)
    with running() as now:
        now.machine.plug(f"{faulty}:{kind},id=it,port=0")
        now.express(regs.PCI_EXP_SLTSTA, 0x108)
        with pytest.raises(UserError, match="it is gone, but first its code raised RuntimeError: not today either"):
            now.machine.unplug("it", force=True)
        assert "it" not in now.machine.parts and now.events[-1] == ("unplugged", "it")
        assert now.express(regs.PCI_EXP_SLTSTA) == 0x108, "the guest is told, and sees that nothing is there"
        now.machine.plug("virtio-rng,id=it,port=0")


def test_before_the_start_a_machine_is_only_made_otherwise() -> None:
    with Machine(MachineConfig(guest="keyboard", devices=("virtio-rng,id=r1",))) as machine:
        assert machine.unplug("r1") is True
        machine.plug("pci-testdev,id=t1")
        (function,) = [f for f in machine.board.pci.all_functions() if f.bars]
        assert all(bar.address(function.config) for bar in function.bars.values()), "firmware has placed it"
        assert machine.wait(lambda: "> " in machine.screen, 60)
        assert machine.parts.keys() >= {"t1"}


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Inside, this process may open *free* more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]  # there are no gaps below the last
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + free, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def test_without_descriptors_nothing_comes_and_the_machine_goes_on(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with running() as now:
        now.turn_acpi_on()
        disk, came = f"virtio-blk,path={tmp_path / 'disk'},id=it", []
        before = len(os.listdir("/proc/self/fd"))
        for free in range(8):
            try:
                with few_descriptors(free):
                    now.machine.plug(disk)
            except UserError as error:
                assert "raise ulimit -n" in str(error)
                assert "it" not in now.machine.parts and len(os.listdir("/proc/self/fd")) == before
            else:
                came.append(free)
                now.machine.unplug("it")
                now.write(PCI_EJ_BASE, 0xFFFFFFFF)
                assert now.gone("it") and now.machine.outcome is None
        assert came and came[0] > 0, "it needs some"


class Huge(PciDevice):
    """More than there are addresses for."""

    vendor_id, device_id = 0x1234, 3

    def __init__(self) -> None:
        super().__init__()
        self.add_memory_bar(0, GIB, self)

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_before_the_start_what_there_is_no_room_for_leaves_nothing() -> None:
    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.plug("pci-testdev,id=t1")
        before = machine.board.pci.all_functions()
        with pytest.raises(UserError, match="there is 0x20000000: leave a device away"):
            machine.plug(Huge())
        assert machine.board.pci.all_functions() == before and list(machine.board.devices) == ["t1"]
        machine.plug("virtio-rng")
        assert machine.wait(lambda: "> " in machine.screen, 60)


@pytest.mark.parametrize("kind", [PciTestdev, VirtioRng, partial(Dimm, "128M")])
def test_the_same_device_does_not_come_twice(kind: Callable[[], object]) -> None:
    with running(memory_slots=2, max_memory=GIB) as now:
        now.turn_acpi_on()
        device = kind()
        name = type(device).__name__
        assert now.machine.plug(device) is device
        before = dict(now.machine.parts), now.machine.board.pci.all_functions(), now.machine.memory.regions
        with pytest.raises(UserError, match=f"it is in the machine already, as {name}: make another"):
            now.machine.plug(device)
        assert before == (dict(now.machine.parts), now.machine.board.pci.all_functions(), now.machine.memory.regions)
        now.machine.plug(kind())


def test_a_paused_machine_hears_of_it_when_it_goes_on() -> None:
    with running() as now:
        now.turn_acpi_on()
        with now.machine.paused():
            now.machine.plug("virtio-rng,id=r1")
            now.machine.plug("virtio-rng,id=r2,port=0")
            assert now.machine.unplug("r1") is False
            assert now.machine.unplug("r2", force=True) is True
        assert now.read(PCI_DOWN_BASE) == now.read(PCI_UP_BASE) == 1 << 1


def test_what_no_guest_would_find_does_not_come() -> None:
    """On bus 0, where a guest has looked and is told of nothing; one that boots looks later, and is told later."""
    with running() as now:
        now.machine.plug("virtio-rng,id=r1")
        assert 1 in now.look(), "it comes before the guest looks"

        def held() -> tuple[object, ...]:
            return dict(now.machine.parts), now.machine.board.pci.all_functions(), now.read(PCI_UP_BASE)

        assert now.read(PCI_UP_BASE) == 1 << 1, "which clears it"
        before = held()
        for place, slot in (("", 2), (",slot=9", 9)):
            with pytest.raises(UserError) as refused:
                now.machine.plug(f"virtio-rng,id=r2{place}")
            assert str(refused.value) == (
                f"device virtio-rng,id=r2{place}: its guest has found slot {slot} empty and has not turned on ACPI "
                "(SCI_EN), which would tell it: wait until it has, or say port=0 where there are --root-ports"
            )
        assert held() == before
        now.machine.plug("virtio-rng,id=r3,port=0")
        snapshot = now.machine.snapshot()
        now.turn_acpi_on()
        now.machine.plug("virtio-rng,id=r2")
        assert now.take_event() and now.read(PCI_UP_BASE) == 1 << 2
        assert not now.machine.unplug("r2")
        now.machine.reset()
        now.machine.plug("virtio-rng,id=r4,slot=9")
        assert {1, 9} <= set(now.look()), "after a reset it looks again"
        with pytest.raises(UserError, match="found slot 2 empty"):
            now.machine.plug("virtio-rng")
        now.turn_acpi_on()
        assert not now.machine.unplug("r4")
        now.write(PCI_EJ_BASE, 1 << 9)
        assert now.gone("r4")
        now.machine.restore(snapshot)
        with pytest.raises(UserError, match="found slot 9 empty"):
            now.machine.plug("virtio-rng,slot=9")


def test_while_a_snapshot_is_taken_nothing_comes_and_while_it_is_saved_it_may(tmp_path: Path) -> None:
    with running() as now:
        refused: list[str] = []

        def too_early(done: int, total: int) -> None:
            if not refused:
                with pytest.raises(UserError) as error:
                    now.machine.plug("virtio-rng,id=r1,port=0")
                refused.append(str(error.value))

        def in_time(done: int, total: int) -> None:
            if "r1" not in now.machine.parts:
                now.machine.plug("virtio-rng,id=r1,port=0")

        snapshot = now.machine.snapshot(too_early)
        assert refused[0].startswith("plug() waits for the machine") and "r1" not in now.machine.parts
        snapshot.save(tmp_path / "saved", in_time)
        assert "r1" in now.machine.parts
    with Machine.restored(tmp_path / "saved") as other:
        assert "r1" not in other.parts and other.plug("virtio-rng,id=r1,port=0")


def test_a_slot_in_d3hot_has_a_device_that_answers_in_configuration_space_alone() -> None:
    with running(devices=("pci-testdev,id=t1",)) as now:
        now.turn_acpi_on()
        function = next(one for one in now.machine.board.pci.all_functions() if isinstance(one, PciTestdev))
        bar = function.bars[0]

        def answers() -> int:
            mmio = now.machine.board.mmio
            return now.machine.call(lambda: mmio.read(bar.address(function.config), 1))

        now.machine.call(lambda: function.config_write(regs.PCI_COMMAND, 2, 6))
        assert answers() == 0 and function.bus_master
        awake = now.machine.snapshot()
        now.write(D3HOT, 1 << 1)
        assert answers() == 0xFF and not function.bus_master
        assert now.machine.call(lambda: function.config_read(regs.PCI_COMMAND, 2)) == 6
        asleep = now.machine.snapshot()
        for snapshot, value in ((awake, 0), (asleep, 0xFF), (asleep, 0xFF), (awake, 0)):
            now.machine.restore(snapshot)
            assert (answers(), function.bus_master) == (value, not value)
        now.write(D3HOT, 1 << 1)
        now.write(D0, 1 << 1)
        assert answers() == 0 and function.bus_master
        now.write(D3HOT, 1 << 1)
        assert not now.machine.unplug("t1")
        now.write(PCI_EJ_BASE, 1 << 1)
        assert now.gone("t1")
        now.machine.plug("pci-testdev,id=t1,slot=1")
        assert now.read(D0) == 1 << 1
        now.write(D3HOT, 1 << 1)
        now.machine.reset()
        assert now.read(D0) == 1 << 1 and now.read(D3HOT) == 0


def test_a_reset_ends_what_was_asked_for_and_keeps_the_rest() -> None:
    with running() as now:
        now.turn_acpi_on()
        now.express(regs.PCI_EXP_SLTCTL, 0x1028)
        now.machine.plug("virtio-rng,id=r1")
        now.machine.plug("virtio-rng,id=r2")
        now.machine.plug("virtio-rng,id=r3,port=0")
        assert not now.machine.unplug("r1") and not now.machine.unplug("r3")
        now.machine.reset()
        assert {"r1", "r2", "r3"} & now.machine.parts.keys() == {"r2"}
        assert now.machine.wait(lambda: "> " in now.machine.screen, 60)
        assert now.express(regs.PCI_EXP_SLTSTA) == 0


def test_a_snapshot_is_of_the_devices_that_there_were(tmp_path: Path) -> None:
    with running(rng=True) as now:
        machine = now.machine
        before = machine.snapshot()
        machine.plug("virtio-rng,id=r1,port=1")
        with pytest.raises(UserError, match="device r1 was not there when the snapshot was taken: unplug it first"):
            machine.restore(before)
        then = machine.snapshot()
        then.save(tmp_path / "saved")
        machine.restore(then)
        assert machine.unplug("r1", force=True)
        with pytest.raises(UserError, match=r"device r1 was there when .*: plug in virtio-rng,id=r1,port=1 first"):
            machine.restore(then)
        machine.restore(before)
        machine.plug("virtio-rng,id=r1,port=1")
        machine.restore(then)
        machine.plug(VirtioRng())
        with pytest.raises(UserError, match="device VirtioRng was made in Python: unplug it first"):
            machine.snapshot().save(tmp_path / "other")
        places = dict(machine.board.pci.parts())
    with Machine.restored(tmp_path / "saved") as other:
        there = dict(other.board.pci.parts())
        assert {place: type(function) for place, function in there.items()} == {
            place: type(function) for place, function in places.items() if place != "02.0"
        }
        assert other.parts.keys() >= {"root-port", "root-port-2", "virtio-rng", "r1"}
        other.start()
        other.keyboard.type("echo restored\n")
        assert other.wait(lambda: "restored" in other.screen, 60)
        assert other.unplug("r1", force=True)


def test_what_the_guest_let_go_of_before_a_restore_stays() -> None:
    """It ejects the device, and the restore comes before that has gone."""
    with running() as now:
        machine = now.machine
        now.turn_acpi_on()
        machine.plug("virtio-rng,id=r1")
        snapshot = machine.snapshot()
        machine.unplug("r1")

        def eject() -> None:
            machine.life.queue(lambda: machine.snapshots.go_back(snapshot))
            machine.board.pio.write(layout.PCI_HOTPLUG + PCI_EJ_BASE, 4, 1 << 1)

        with machine.paused():
            machine.call(eject)
            assert machine.wait(lambda: ("restored", "") in now.events, 60)
        assert "r1" in machine.parts and ("unplugged", "r1") not in now.events


def test_a_keyboard_that_is_gone_holds_no_keys() -> None:
    with running() as now:
        now.machine.plug("virtio-keyboard,id=k1,port=0")
        assert now.machine.unplug("k1", force=True)
        now.machine.keyboard.type("echo by PS/2\n")
        assert now.machine.wait(lambda: "by PS/2" in now.machine.screen, 60)
