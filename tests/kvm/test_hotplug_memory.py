"""Memory that comes and goes in a machine that runs, with the guest memory-hotplug, which uses it and lets go of it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm import Machine, MachineConfig, QmpServer, plain
from pyvmm.board import layout, memory_banks
from pyvmm.board.dimm import Dimm
from pyvmm.cli.arguments import main
from pyvmm.devices.memory_hotplug import CONTROL, EJECT, OST_EVENT, OST_STATUS, SELECTOR
from pyvmm.devices.ost import OST_EJECT_REQUEST
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.saved import Saved
from pyvmm.machine.snapshot import Snapshot
from pyvmm.machine.snapshot_file import SnapshotFile, write
from pyvmm.memory import Region
from pyvmm.units import GIB, MIB
from pyvmm.virtio.pci import VirtioPci
from tests.rig.board import Board, board

OK = Outcome(End.DEBUG_EXIT, 0)
BLOCK = 128 * MIB
FIRST = 4 * GIB
APART = 0x10000
"""Bytes from one address that the guest writes to the next."""
IN_USE = 0x81
REFUSED = "m1: the guest does not let go of it: an application uses it (_OST status 0x81)"


@contextmanager
def running(rounds: int = 1, **options: object) -> Iterator[Board]:
    """The guest, which has turned on ACPI and waits."""
    fields: dict[str, object] = {"memory_slots": 4, "max_memory": GIB, **options}
    with board("memory-hotplug", parameters={"rounds": rounds}, **fields) as machine:
        assert machine.wait(lambda: machine.board.acpi_pm.acpi_enabled, 60)
        yield machine


def expect(machine: Board, printed: bytes) -> None:
    assert machine.wait(lambda: bytes(machine.output) == printed, 60), bytes(machine.output)


def events(machine: Machine) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    machine.events.add(lambda event: found.append((event.kind, event.message)))
    return found


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
@pytest.mark.parametrize("kind", [{}, {"memory_shared": True}], ids=["anonymous", "shared"])
def test_a_guest_uses_what_comes_and_lets_go_of_it(irqchip: str, kind: dict[str, object]) -> None:
    with running(2, irqchip=irqchip, **kind) as machine:
        told = events(machine)
        dimm = machine.plug("memory,size=256M,id=m1")
        assert isinstance(dimm, Dimm) and machine.parts["m1"] is dimm
        expect(machine, b"w")
        assert (machine.value("base"), machine.value("size")) == (FIRST, 2 * BLOCK)
        last = FIRST + 2 * BLOCK - APART
        assert machine.memory.read_int(last, 8) == last
        assert machine.unplug("m1") is False
        expect(machine, b"we")
        assert "m1" not in machine.parts
        assert all(gpa < FIRST for gpa, _ in machine.memory.regions)
        machine.plug("memory,size=128M")
        expect(machine, b"wew")
        assert machine.memory.read_int(FIRST + 8, 8) == 0, "it is new"
        machine.unplug("memory")
        assert machine.finish() == OK
        assert machine.value("written") == 4
        plugs = [event for event in told if "plug" in event[0]]
        assert plugs == [("plugged", "m1"), ("unplugged", "m1"), ("plugged", "memory"), ("unplugged", "memory")]


def test_a_reset_keeps_it_and_ends_what_was_asked_for() -> None:
    with running() as machine:
        machine.plug("memory,size=128M,id=stays")
        expect(machine, b"w")
        machine.pause()
        machine.plug("memory,size=128M,id=goes")
        machine.unplug("goes")
        machine.reset()
        assert "goes" not in machine.parts
        assert machine.memory.read_int(FIRST + APART, 8) == FIRST + APART, "RAM stays"
        machine.call(machine.output.clear)
        machine.resume()
        assert machine.wait(lambda: machine.board.acpi_pm.acpi_enabled, 60)
        assert machine.value("written") == 0, "the guest has begun again, and is not told of what is there"
        machine.plug("memory,size=128M,id=more")
        expect(machine, b"w")
        assert machine.value("base") == FIRST + BLOCK


def test_back_to_a_snapshot_with_the_same_memory() -> None:
    with running() as machine:
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        snapshot = machine.snapshot()
        for _ in range(2):
            machine.memory.write_int(FIRST + 5 * APART, 8, 0)
            machine.memory.write_int(FIRST + 8, 8, 1)
            machine.restore(snapshot)
            assert machine.memory.read_int(FIRST + 5 * APART, 8) == FIRST + 5 * APART
            assert machine.memory.read_int(FIRST + 8, 8) == 0
        machine.unplug("m1")
        expect(machine, b"we")
        assert machine.outcome == OK


def test_what_the_guest_let_go_of_before_a_restore_stays() -> None:
    """It ejects the memory, and the restore comes before that has gone."""
    with running() as machine:
        told = events(machine)
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        snapshot = machine.snapshot()

        def eject() -> None:
            machine.life.queue(lambda: machine.snapshots.go_back(snapshot))
            machine.board.pio.write(layout.MEMORY_HOTPLUG + SELECTOR, 4, 0)
            machine.board.pio.write(layout.MEMORY_HOTPLUG + CONTROL, 1, EJECT)

        with machine.paused():
            machine.unplug("m1")
            machine.call(eject)
            assert machine.wait(lambda: ("restored", "") in told, 60)
        assert ("unplugged", "m1") not in told and machine.memory.read_int(FIRST, 8) == FIRST
        machine.unplug("m1")
        assert machine.finish() == OK


def test_a_snapshot_right_after_an_ejection_is_of_a_machine_without_it() -> None:
    """It is asked for before that has gone: a guest which is gone back to has let go of it, and would not again."""
    with running(rounds=2) as machine:
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        taken: list[Snapshot] = []

        def eject() -> None:
            machine.life.queue(lambda: taken.append(machine.snapshots.take()))
            machine.board.pio.write(layout.MEMORY_HOTPLUG + SELECTOR, 4, 0)
            machine.board.pio.write(layout.MEMORY_HOTPLUG + CONTROL, 1, EJECT)

        with machine.paused():
            machine.unplug("m1")
            machine.call(eject)
            assert machine.wait(lambda: bool(taken), 60)
            assert "m1" not in machine.parts and taken[0].devices == {}
        machine.restore(taken[0])
        assert all(gpa < FIRST for gpa, _ in machine.memory.regions)


def test_snapshots_from_before_and_after_it_came() -> None:
    """Each is gone back to with what was plugged in then; memory that was gone meanwhile is what it was."""
    with running(rounds=9) as machine:
        before = machine.snapshot()
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        with_it = machine.snapshot()
        with pytest.raises(UserError, match="device m1 was not there when the snapshot was taken: unplug it first"):
            machine.restore(before)
        machine.memory.write_int(FIRST + APART, 8, 7)
        later = machine.snapshot()
        machine.memory.write_int(FIRST + APART, 8, FIRST + APART)
        machine.unplug("m1")
        expect(machine, b"we")
        assert "m1" not in machine.parts
        with pytest.raises(UserError, match="plug in memory,size=128M,address=0x100000000,id=m1,slot=0 first"):
            machine.restore(with_it)
        machine.restore(before)
        machine.call(machine.output.clear)
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        machine.restore(later)
        assert machine.memory.read_int(FIRST + APART, 8) == 7
        assert machine.memory.read_int(FIRST + 2 * APART, 8) == FIRST + 2 * APART
        machine.restore(with_it)
        assert machine.memory.read_int(FIRST + APART, 8) == FIRST + APART
        machine.unplug("m1")
        expect(machine, b"we")
        assert machine.value("written") == 2


@pytest.mark.parametrize("kind", [{}, {"memory_shared": True}], ids=["anonymous", "shared"])
def test_a_file_has_it(kind: dict[str, object], tmp_path: Path) -> None:
    """In the order of addresses, not that in which it came; and though it has gone when the file is written."""
    with running(2, devices=("virtio-rng,id=here",), **kind) as machine:
        machine.plug("memory,size=256M,id=m2,address=0x108000000,slot=3")
        expect(machine, b"w")
        machine.plug(Dimm("128M"))
        expect(machine, b"ww")
        machine.memory.write_int(FIRST + BLOCK + APART, 8, 7)
        snapshot = machine.snapshot()
        machine.memory.write_int(FIRST + BLOCK + APART, 8, 8)
        machine.unplug("Dimm")
        expect(machine, b"wwe")
        snapshot.save(tmp_path / "saved")
    saved = Saved(str(tmp_path / "saved"))
    saved.file.check()
    assert saved.file.ram.length == 16 * MIB + 3 * BLOCK
    with Board(saved.config, saved=saved) as machine:
        assert {name: (machine.parts[name].address, machine.parts[name].slot) for name in ("m2", "Dimm")} == {
            "m2": (FIRST + BLOCK, 3),
            "Dimm": (FIRST, 0),
        }
        numbers = {at: machine.memory.read_int(FIRST + at, 8) for at in range(0, 3 * BLOCK, APART)}
        assert numbers == {at: FIRST + at for at in numbers} | {BLOCK + APART: 7}
        before = machine.snapshot()
        machine.memory.write_int(FIRST + APART, 8, 7)
        machine.restore(before)
        assert machine.memory.read_int(FIRST + APART, 8) == FIRST + APART
        before.save(tmp_path / "again")
        machine.memory.write_int(FIRST + BLOCK + APART, 8, FIRST + BLOCK + APART)  # the guest looks as it lets go
        machine.unplug("Dimm")
        expect(machine, b"e")
        machine.unplug("m2")
        assert machine.finish() == OK
        assert bytes(machine.output) == b"ee"
    again = Saved(str(tmp_path / "again"), ["virtio-rng,id=there"])
    with Board(again.config, saved=again) as machine:
        assert machine.parts.keys() >= {"there", "m2", "Dimm"}, "the memory is the file's"
        assert machine.memory.read_int(FIRST + BLOCK + APART, 8) == 7


def test_memory_that_comes_to_a_machine_from_a_file(tmp_path: Path) -> None:
    with running() as machine:
        machine.snapshot().save(tmp_path / "before")
    saved = Saved(str(tmp_path / "before"))
    with Board(saved.config, saved=saved) as machine:
        before = machine.snapshot()
        machine.plug("memory,size=128M,id=m2")
        expect(machine, b"w")
        with_it = machine.snapshot()
        machine.memory.write_int(FIRST + APART, 8, 7)
        machine.restore(with_it)
        assert machine.memory.read_int(FIRST + APART, 8) == FIRST + APART
        before.save(tmp_path / "again")
        machine.unplug("m2")
        assert machine.finish() == OK
    with Saved(str(tmp_path / "again")).file as file:
        file.check()
        assert file.ram.length == 16 * MIB


@pytest.mark.parametrize("size", ["size=256M", "size=129M", "size=", "address=0x100000000", "size=1,size=2"])
def test_a_file_whose_memory_is_not_its_configurations(size: str, tmp_path: Path) -> None:
    with running() as machine:
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        machine.snapshot().save(tmp_path / "saved")
    with SnapshotFile(str(tmp_path / "saved")) as file:
        state, length = file.state, file.ram.length
        config = plain.encode(file.config).replace(b"size=128M", size.encode().ljust(9, b","))
    write(str(tmp_path / "other"), plain.decode(config), state, length, [])
    with pytest.raises(UserError, match=r"^\S+/other: .*") as refused:
        Saved(str(tmp_path / "other"))
    assert "\n" not in str(refused.value)


def test_a_guest_that_does_not_let_go_is_heard() -> None:
    with running() as machine:
        told = events(machine)
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")

        def refuse() -> None:
            """As a guest's _OST does, before this one has seen that it is asked."""
            pio, at = machine.board.pio, layout.MEMORY_HOTPLUG
            pio.write(at + SELECTOR, 4, 0)
            pio.write(at + OST_EVENT, 4, OST_EJECT_REQUEST)
            pio.write(at + OST_STATUS, 4, IN_USE)

        with machine.paused():
            machine.unplug("m1")
            machine.call(refuse)
        assert ("unplug-refused", REFUSED) in told
        assert machine.memory.read_int(FIRST, 8) == FIRST
        machine.unplug("m1")
        assert machine.finish() == OK


def test_a_queue_in_it_keeps_it() -> None:
    with running(devices=("virtio-rng,id=r1",)) as machine:
        told = events(machine)
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        function = next(one for one in machine.board.pci.all_functions() if isinstance(one, VirtioPci))
        queue = function.device.queues[0]

        def start() -> None:
            queue.desc, queue.driver, queue.device = FIRST, FIRST + 0x10000, FIRST + 0x20000
            queue.start(machine.board.memory, 0)

        def eject() -> None:
            machine.board.pio.write(layout.MEMORY_HOTPLUG + SELECTOR, 4, 0)
            machine.board.pio.write(layout.MEMORY_HOTPLUG + CONTROL, 1, EJECT)

        machine.call(start)
        with machine.paused():
            machine.unplug("m1")
            machine.call(eject)
        assert machine.wait(lambda: ("unplug-refused", "m1: r1 has a queue in it") in told)
        assert "m1" in machine.parts and machine.memory.read_int(FIRST, 8) == FIRST
        machine.call(queue.stop)
        machine.unplug("m1")
        machine.finish()
        assert "m1" not in machine.parts


def test_from_another_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pyvmm plug and unplug, of which the second says why memory stays."""
    path = str(tmp_path / "qmp")
    with running(rounds=2, devices=("virtio-rng,id=r1",)) as machine, QmpServer(machine, path):
        assert main(["plug", path, "memory,size=100M"]) == 2
        assert "pyvmm: memory,size=100M: size=100M is no multiple of 128M" in capsys.readouterr().err
        assert main(["plug", path, "memory,size=128M,id=m1"]) == 0
        expect(machine, b"w")
        assert main(["unplug", path, "m1"]) == 0
        expect(machine, b"we")
        assert main(["plug", path, "memory,size=128M,id=m1"]) == 0
        expect(machine, b"wew")
        function = next(one for one in machine.board.pci.all_functions() if isinstance(one, VirtioPci))
        queue = function.device.queues[0]

        def start() -> None:
            queue.desc, queue.driver, queue.device = FIRST, FIRST + 0x10000, FIRST + 0x20000
            queue.start(machine.board.memory, 0)

        machine.call(start)
        capsys.readouterr()
        assert main(["unplug", path, "m1"]) == 2
        assert "pyvmm: m1: r1 has a queue in it" in capsys.readouterr().err


def test_nothing_is_left_behind() -> None:
    """Descriptors, mappings and slots after the first and after the tenth time."""

    def held(machine: Board) -> tuple[object, ...]:
        gc.collect()
        mapped = sum(int(size) for size in re.findall(r"^Size: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.M))
        return len(os.listdir("/proc/self/fd")), mapped // 65536, machine.memory.regions, sorted(machine.parts)

    def round_trip(machine: Board) -> None:
        machine.call(machine.output.clear)
        machine.plug("memory,size=384M,id=it")
        expect(machine, b"w")
        machine.unplug("it")
        expect(machine, b"we")
        assert "it" not in machine.parts

    with running(rounds=99, memory_shared=True) as machine:
        round_trip(machine)
        before = held(machine)
        for _ in range(9):
            round_trip(machine)
        assert held(machine) == before


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ("memory", "memory needs size=: say size=STR"),
        ("memory,size=100M", "size=100M is no multiple of 128M"),
        ("memory,size=0", "size=0 is no multiple of 128M"),
        ("memory,size=much", "'much' is no size: write it as 512M or 10G"),
        ("memory,size=128M,address=0x100001000", "address=0x100001000 is no multiple of 128M"),
        ("memory,size=128M,address=0x80000000", "it does not fit at 0x80000000: memory is plugged in at 0x100000000-"),
        ("memory,size=128M,address=0x108000000", "it does not fit at 0x108000000"),
        ("memory,size=1G", "with it there would be more than 1G: ask for at most 768M"),
        ("memory,size=768M", "no gap between the others is large enough: ask for at most 640M"),
        ("memory,size=128M,slot=1", "slot 1 has memory already: leave slot away"),
        ("memory,size=128M,slot=2", "there is no slot 2 for memory: there are 0 to 1"),
        ("memory,size=128M,port=0", "no PCI device: leave port away"),
        ("memory,size=128M,speed=9", "memory has no key speed: it has size, address"),
        ("memory,size=128M,id=there", "there is a device there already"),
    ],
)
def test_what_cannot_come_leaves_nothing(device: str, why: str) -> None:
    there = "memory,size=128M,slot=1,address=0x108000000,id=there"
    with running(memory_slots=2, devices=(there,)) as machine:

        def held() -> tuple[object, ...]:
            return len(os.listdir("/proc/self/fd")), sorted(machine.parts), machine.memory.regions

        before = held()
        with pytest.raises(UserError) as refused:
            machine.plug(device)
        assert why in str(refused.value) and "\n" not in str(refused.value)
        assert held() == before
        machine.plug("memory,size=128M")
        expect(machine, b"w")
        with pytest.raises(UserError, match="each of the 2 slots for memory is taken: unplug some"):
            machine.plug("memory,size=128M")


@pytest.mark.parametrize("started", [False, True])
def test_who_knows_of_no_slots_says_how_to_get_them(started: bool) -> None:
    """Of a guest without ACPI too."""
    with Machine(MachineConfig(guest="keyboard")) as machine:
        if started:
            machine.start()
        with pytest.raises(UserError, match="there are no slots for memory: start with -m SIZE,slots=N,max=SIZE"):
            machine.plug("memory,size=128M")


def test_a_host_with_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as machine:
        monkeypatch.setattr(memory_banks, "host_memory", lambda: 100 * MIB)
        with pytest.raises(UserError, match="this host has 100 MiB of memory and swap, and the guest 15: ask for less"):
            machine.plug("memory,size=128M")


def test_a_listener_that_refuses_it_leaves_nothing() -> None:
    """As VFIO does where the IOMMU does not reach: the guest is told of nothing."""

    class Refusing:
        def added(self, region: Region) -> None:
            if region.gpa >= FIRST:
                raise UserError("not so high")

        def removed(self, region: Region) -> None: ...

    with running() as machine:
        machine.call(lambda: machine.board.memory.watch(Refusing()))
        told = events(machine)
        with pytest.raises(UserError, match=r"device memory,size=128M: not so high"):
            machine.plug("memory,size=128M")
        assert told == [] and bytes(machine.output) == b"" and "memory" not in machine.parts


def test_a_guest_without_acpi_is_not_asked() -> None:
    with board("keyboard", memory_slots=2, max_memory=GIB) as machine:
        machine.plug("memory,size=128M,id=m1")
        machine.start()
        regions = machine.memory.regions
        for device in ("memory,size=128M,id=m2", Dimm("128M")):
            with pytest.raises(UserError, match=r"its guest has not turned on ACPI \(SCI_EN\), which would tell it"):
                machine.plug(device)
        assert machine.memory.regions == regions and machine.parts.keys().isdisjoint(("m2", "Dimm"))
        with pytest.raises(UserError, match="device m1: its guest does not use ACPI"):
            machine.unplug("m1")
        with pytest.raises(UserError, match="only the guest can let go of: leave force away"):
            machine.unplug("m1", force=True)


def test_before_it_has_started_it_comes_and_goes_at_once() -> None:
    with board("keyboard", memory_slots=1, max_memory=GIB) as machine:
        machine.plug("memory,size=128M,id=m1")
        assert machine.memory.regions[-1] == (FIRST, BLOCK)
        assert machine.unplug("m1") is True
        assert machine.memory.regions[-1][0] < FIRST


def test_a_guest_that_was_restored_is_asked_before_it_has_started(tmp_path: Path) -> None:
    with running() as machine:
        machine.snapshot().save(tmp_path / "file")
    saved = Saved(str(tmp_path / "file"))
    with Board(saved.config, saved=saved) as machine:
        machine.plug("memory,size=128M,id=m1")
        assert machine.state == "built" and machine.unplug("m1") is False
        assert machine.finish() == OK
        assert bytes(machine.output) == b"we"


def test_a_view_outlives_what_it_was_of() -> None:
    with running() as machine:
        machine.plug("memory,size=128M,id=m1")
        expect(machine, b"w")
        view = machine.memory.view(FIRST, 8)
        machine.unplug("m1")
        assert machine.finish() == OK
        assert int.from_bytes(view, "little") == FIRST
    assert int.from_bytes(view, "little") == FIRST
