"""Timelines of small guests, read back by Perfetto's messages: what is on a track, and ways from host to guest."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.control.timeline import record
from pyvmm.control.timeline.timeline import Timeline
from pyvmm.errors import UserError
from pyvmm.input.codes import KEY_E
from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.ne2000 import Ne2000
from pyvmm.units import MIB
from pyvmm.virtio.pci import VirtioPci
from tests.rig.board import Board, board, counting
from tests.rig.net_driver import PEER, FakeWire, OneWire
from tests.rig.timeline import ended, flows, said, trace_of
from tests.rig.virtio_driver import Virtio

VERSION_1 = 1 << 32
PYVMM = Path(sys.executable).with_name("pyvmm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timeline"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_key_is_one_flow_from_the_script_to_the_guests_read(path: Path, irqchip: str) -> None:
    with board("keyboard", irqchip=irqchip) as machine:
        assert machine.wait(lambda: "> " in machine.screen, 60)
        with Timeline(machine, path):
            machine.keyboard.type("a")
            assert machine.wait(lambda: "> a" in machine.screen, 60)
            assert machine.wait(lambda: machine.keyboard.idle, 60)
    seen = trace_of(path)
    pressed, released = ended(seen)
    tracks = ["input", "ps2-keyboard", "i8042", "interrupts", "i8042"]
    assert [track for track, _ in pressed] == [track for track, _ in released] == tracks
    names = [name for _, name in pressed]
    assert names[0] == "script: KEY_A pressed" and names[2] == "output buffer = 0x1e, OBF"
    assert re.match(r"KVM_IRQ_LINE: IRQ 1 up$|INTA: IRQ 1, |pin 1: ", names[3])
    assert names[4] == "read of port 0x60 returns 0x1e, OBF clear"
    way = next(way for way in flows(seen).values() if any(event.name == names[0] for event in way))
    (read,) = [event for event in way if event.track == "vCPU 0" and event.name == "i8042: in 0x60"]
    assert read.ended is not None and read.began <= way[-1].began <= read.ended
    (host,) = [event for event in way if event.track == "thread machine"][:1]
    assert host.began <= way[1].began, "the callback of the loop that the key came with"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_doorbell_is_one_flow_from_the_kick_to_the_guests_acknowledgement(path: Path, irqchip: str) -> None:
    with board("pci", rng=True, irqchip=irqchip, parameters={"intx": 1}) as machine, Timeline(machine, path):
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
    ways = ended(trace_of(path))
    assert len(ways) == 3, "one an interrupt"
    for way in ways:
        lines = [f"{track}: {name}" for track, name in way]
        for step in (
            "virtio-rng: queue 0 is kicked",
            "virtio-rng: queue 0: chain 0: DMA reads 0 bytes, may write 64",
            "virtio-rng: queue 0: chain 0 is used, 64 bytes written",
            "virtio-rng: queue 0: the driver is told of used buffers",
        ):
            assert lines.pop(0) == step
        assert lines.pop() == "virtio-rng: read of the ISR status returns 0x1"
        assert lines and all(re.match(r"interrupts: .*(IRQ|pin) 1[17]\b", line) for line in lines)


@pytest.mark.parametrize("msix", [False, True])
def test_a_key_by_virtio_input_is_one_flow(path: Path, tmp_path: Path, msix: bool) -> None:
    """Its driver runs on no vCPU: what it reads is told all the same."""
    with counting(tmp_path, virtio_input="standard") as machine:
        machine.start()
        functions = machine.board.pci.all_functions()
        device = next(one.device for one in functions if isinstance(one, VirtioPci))  # the keyboard is the first
        driver = machine.call(lambda: Virtio.of_machine(machine, device))
        (events, _) = machine.call(lambda: driver.setup(VERSION_1, 16))
        if msix:
            machine.call(driver.msix)
        with Timeline(machine, path):
            for number in range(4):
                machine.call(lambda number=number: events.add([(0x80000 + 8 * number, 8, True)]))  # type: ignore[misc]
            machine.call(lambda: driver.kick(0))
            machine.keyboard.key(KEY_E, 1)
            machine.keyboard.key(KEY_E, 0)
            used: list[tuple[int, int]] = []

            def all_used() -> bool:
                used.extend(events.used())
                return len(used) == 4  # each with its SYN_REPORT

            assert machine.wait(all_used, 60)
            assert machine.call(lambda: driver.read(0x2000, 1)) == 1
    way, up = (way for way in ended(trace_of(path)) if way[0][0] == "input")
    assert up[0] == ("input", "inject: KEY_E released") and way[0] == ("input", "inject: KEY_E pressed")
    assert way[1] == ("input", "QEMU Virtio Keyboard: event type 0x1 code 0x12 value 1")
    assert way[2] == ("virtio-input", "queue 0: the driver is told of used buffers")
    interrupts = [name for track, name in way[3:] if track == "interrupts"]
    if msix:
        assert len(way) == 4 and re.match("MSI by GSI|KVM_SIGNAL_MSI: ", interrupts[0])
    else:
        assert len(interrupts) == 2 and all(name.startswith("KVM_IRQ_LINE: IRQ ") for name in interrupts)
        assert way[5:] == [("virtio-input", "read of the ISR status returns 0x1")]


def test_a_doorbell_whose_interrupt_is_a_message(path: Path) -> None:
    with board("pci", rng=True) as machine, Timeline(machine, path):
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
    ways = ended(trace_of(path))
    assert len(ways) == 5
    assert all(re.match("MSI by GSI|KVM_SIGNAL_MSI: ", way[-1][1]) for way in ways)


@pytest.mark.parametrize("depth", [1, 8])
def test_a_disk_request_is_one_flow(path: Path, tmp_path: Path, depth: int) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    parameters = {"count": 20, "depth": depth, "write": 0, "blocks": MIB // 4096}
    device = f"virtio-blk,path={disk}"
    with board("blk-bench", parameters=parameters, devices=(device,)) as machine, Timeline(machine, path):
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
    ways = [[name for _, name in said(way)] for way in flows(trace_of(path)).values()]
    requests = [way for way in ways if any(name.startswith("type 0 sector ") for name in way)]
    assert len(requests) == 20
    if depth == 1:
        assert all(way[0] == "queue 0 is kicked" for way in requests)
    told = 0
    for way in requests:
        rest = [name for name in way if name != "queue 0 is kicked"]
        assert re.match(r"queue 0: chain \d+: DMA reads 16 bytes, may write 4097$", rest[0])
        assert re.match(r"type 0 sector \d+ out 0 in 4096$", rest[1])
        assert re.match(r"queue 0: chain \d+ is used, 4097 bytes written$", rest[2])
        if len(rest) > 3:  # the driver sees what is used without an interrupt too
            assert rest[3] == "queue 0: the driver is told of used buffers"
            assert re.match("MSI by GSI|KVM_SIGNAL_MSI: ", rest[4])
            told += 1
    assert told


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_an_ata_request_is_one_flow_from_the_command_to_the_guests_read_of_the_data(
    path: Path, tmp_path: Path, irqchip: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    device = f"ata-disk,path={disk}"
    with board("ata", devices=(device,), parameters={"lba": 3}, irqchip=irqchip) as machine, Timeline(machine, path):
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
    seen = trace_of(path)
    (way,) = ended(seen)
    command, intrq, *interrupts, status, data = way
    assert command == ("ata-disk", "command 0x20 registers 00 01 03 00 00 e0") and intrq == ("ata-disk", "INTRQ")
    assert status == ("ata-disk", "read of the status returns 0x58")
    assert data == ("ata-disk", "512 bytes of data are read")
    assert interrupts and all(track == "interrupts" for track, _ in interrupts)
    assert all(re.search(r"\b(IRQ|pin) 14\b", name) for _, name in interrupts)
    (whole,) = flows(seen).values()
    exits = [event.name for event in whole if event.track == "vCPU 0"]
    assert exits[0] == "ide: out port 0x1f0+0x7" and exits[-1].startswith("ide: in port 0x1f0")


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_frames_of_an_ne2000_are_one_flow_each(path: Path, irqchip: str) -> None:
    """What the guest sends ends with its acknowledgement, what it gets with its remote DMA."""
    wire = FakeWire()
    card = Ne2000("user", OneWire(wire))
    with board("ne2k", devices=(card,), irqchip=irqchip) as machine, Timeline(machine, path):
        machine.start()
        assert machine.wait(lambda: machine.value("step") == 5, 60)
        machine.call(lambda: wire.give(wire.out[0][6:12] + PEER + wire.out[0][12:]))
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0)
    sent, received = ended(trace_of(path))
    for way in (sent, received):
        interrupts = [name for track, name in way if track == "interrupts"]
        assert interrupts and all(re.search(r"\b(IRQ|pin) 1\d\b", name) for name in interrupts)
        assert {track for track, _ in way} == {"interrupts", "Ne2000"}
    assert sent[0][1].startswith("sends 60 bytes: ff ff ff ff ff ff ") and sent[-1][1] == "PTX is cleared"
    assert received[0][1].startswith("received 60 bytes: ")
    assert received[-1][1] == "remote DMA has read 64 bytes at 0x4700", "the frame with its header"


def test_every_exit_is_there_once_with_its_device(path: Path) -> None:
    with board("pio") as machine, Timeline(machine, path):
        machine.finish()
        exits = machine.vcpus[0].exits
    names = [event.name for event in trace_of(path) if event.track == "vCPU 0"]
    accesses = [name for name in names if not name.startswith("KVM_EXIT_")]
    assert len(accesses) == exits and accesses[-1] == "debug-exit: out 0xf4"


def test_a_bar_that_moves_has_its_name_wherever_it_was(path: Path) -> None:
    with board("pci", rng=True) as machine, Timeline(machine, path):
        machine.finish()
    names = {event.name for event in trace_of(path) if event.track == "vCPU 0"}
    assert "virtio-rng: write BAR0+0x14" in names
    assert not [name for name in names if name.startswith("nobody: write")]


def test_each_vcpu_has_its_track(path: Path) -> None:
    with board("smp", cpus=3) as machine, Timeline(machine, path):
        machine.finish()
    assert {"vCPU 0", "vCPU 1", "vCPU 2"} <= {event.track for event in trace_of(path)}


def slices_do_not_overlap(path: Path) -> None:
    last: dict[str, int] = {}
    for event in trace_of(path):
        if event.ended is not None:
            assert last.get(event.track, 0) <= event.began <= event.ended
            last[event.track] = event.ended


def test_it_is_switched_on_and_off_while_the_machine_runs(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    with board("keyboard") as machine:
        thread, loop = machine.life.cpus.threads[0], machine.life.loop
        for number in range(3):
            assert thread.observers == () and loop.observer is None and machine.board.pio.changed is None
            assert not machine.trace.channel("i8042").enabled
            with Timeline(machine, tmp_path / str(number)) as timeline:
                assert thread.observers and machine.trace.enabled == ()
                assert machine.wait(lambda: "> " in machine.screen, 60)
                machine.keyboard.type("x")
                with pytest.raises(UserError, match="already"):
                    Timeline(machine, tmp_path / "another")
                with pytest.raises(UserError, match="waits for the machine"):
                    machine.call(timeline.close)
                assert machine.wait(lambda: machine.keyboard.idle, 60)
            assert timeline.error is None
            slices_do_not_overlap(tmp_path / str(number))
        assert not [thread for thread in threading.enumerate() if thread.name == "timeline"]


def test_it_goes_on_over_reset_snapshot_and_pause(path: Path) -> None:
    with board("keyboard") as machine, Timeline(machine, path):
        assert machine.wait(lambda: "> " in machine.screen, 60)
        snapshot = machine.snapshot()
        machine.reset()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        machine.restore(snapshot)
        machine.keyboard.type("b")
        assert machine.wait(lambda: "> b" in machine.screen, 60)
    slices_do_not_overlap(path)
    assert any(way[0][1] == "script: KEY_B pressed" for way in ended(trace_of(path)))


def test_the_file_grows_while_the_guest_rests(path: Path) -> None:
    with board("keyboard") as machine, Timeline(machine, path):
        assert machine.wait(lambda: "> " in machine.screen, 60)
        size = path.stat().st_size
        machine.keyboard.type("x")
        assert machine.wait(lambda: path.stat().st_size > size, 60)


def test_more_than_there_is_room_for_is_left_out_and_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LIMIT", 50)
    monkeypatch.setattr("pyvmm.control.timeline.timeline.LIMIT", 50)
    with board("pio-bench", parameters={"outs": 3000, "ins": 0, "port": 0x3FF}) as machine, Timeline(machine, path):
        machine.finish()
    seen = trace_of(path)
    assert any(event.track == "timeline" and "left out" in event.name for event in seen)
    assert 0 < len(seen) < 3000


def test_a_disk_that_is_full_ends_the_timeline_and_not_the_machine() -> None:
    with Board(MachineConfig(guest="keyboard", memory=16 * MIB)) as machine:
        with Timeline(machine, "/dev/full") as timeline:
            assert machine.wait(lambda: timeline.error is not None, 60)
            assert machine.life.cpus.threads[0].observers == ()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        assert str(timeline.error) == "cannot write the timeline /dev/full: No space left on device"


# The command line


def test_run_writes_it_and_timeline_tells_it(path: Path) -> None:
    ran = subprocess.run([PYVMM, "run", "uart", "--timeline", path], capture_output=True, text=True, timeout=120)
    assert ran.returncode in (0, 16) and "timeline" not in ran.stderr, ran.stderr
    told = subprocess.run([PYVMM, "timeline", path], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert re.match(r"[\d.]+ [mµ]?s, \d+ exits of 1 vCPU\n", told.stdout)
    assert re.search(r"^  com1: (in|out) 0x3f[8-f] +\d+ ", told.stdout, re.MULTILINE)


@pytest.mark.parametrize("file", ["/nowhere/timeline", "/proc/version"])
def test_a_file_that_cannot_be_written_is_one_line(file: str) -> None:
    ran = subprocess.run([PYVMM, "run", "pio", "--timeline", file], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2 and re.fullmatch(rf"pyvmm: .*{file}: .*\n", ran.stderr)


def test_a_run_without_one_imports_nothing_of_it() -> None:
    code = "import sys; from pyvmm.cli.arguments import main; main(['run', 'pio']); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    modules = ran.stdout.split()
    assert "pyvmm.cli.run" in modules and not [name for name in modules if "timeline" in name or "proto" in name]
