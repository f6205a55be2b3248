"""A machine's life on real KVM: it pauses, goes on, resets in place and ends; who may ask for that, and from where."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.devices.cmos_rtc import CmosRtc
from pyvmm.errors import UserError
from pyvmm.input.codes import KEY_A
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import Board, board, count, counting

IRQCHIPS = ["kernel", "split", "user"]
SMP = [("kernel", 1), ("kernel", 2), ("split", 1), ("split", 2), ("user", 1)]
PROMPT = b"> "


@pytest.mark.parametrize(("irqchip", "cpus"), SMP)
def test_a_paused_guest_executes_nothing(tmp_path: Path, irqchip: str, cpus: int) -> None:
    with counting(tmp_path, irqchip=irqchip, cpus=cpus) as machine:
        assert machine.state == "built"
        assert machine.wait(lambda: count(machine) > 1000, 60)
        for _ in range(3):
            with machine.paused("test"):
                assert str(machine.state) == "paused"
                stands = count(machine), [vcpu.get_regs() for vcpu in machine.vcpus]
                time.sleep(0.01)
                assert (count(machine), [vcpu.get_regs() for vcpu in machine.vcpus]) == stands
            assert str(machine.state) == "running"
            before = count(machine)
            assert machine.wait(lambda n=before: count(machine) != n, 60)  # type: ignore[misc]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_an_echo_with_pauses_loses_nothing(irqchip: str) -> None:
    """Paused wherever it happens to be: in HLT, in an exit, in an interrupt."""
    text = b"Some text that is longer than the FIFO of sixteen bytes, a pause a byte."
    with board("hello", irqchip=irqchip) as machine:
        assert machine.wait(lambda: machine.output.endswith(b"powers off.\r\n"), 60)
        machine.call(machine.output.clear)
        for n, byte in enumerate(text):
            assert machine.call(lambda byte=byte: machine.board.com1.receive(bytes((byte,)))) == 1  # type: ignore[misc]
            with machine.paused("test"):
                pass
            assert machine.wait(lambda n=n: len(machine.output) > n, 60), bytes(machine.output)  # type: ignore[misc]
        assert machine.output == text


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_guests_timer_stands_with_it(irqchip: str) -> None:
    """A hundred ticks of 10 ms, with a pause longer than all of them in the middle."""
    with board("timer", parameters={"count": 100}, irqchip=irqchip) as machine:
        assert machine.wait(lambda: machine.value("ticks") > 10, 60)
        with machine.paused("test"):
            ticks = machine.value("ticks")
            clock = machine.life.clock.now()
            time.sleep(1.5)
            assert machine.value("ticks") == ticks
            assert machine.life.clock.now() == clock
        machine.wait(lambda: machine.value("ticks") > ticks, 60)
        assert machine.value("ticks") - ticks < 50, "what was missed is not made up for"
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)


def test_reasons_are_a_set() -> None:
    events: list[MachineEvent] = []
    with board("hello") as machine:
        machine.events.add(events.append)
        machine.pause("one")
        assert machine.state == "paused", "before it has begun"
        machine.start()
        machine.pause("two")
        machine.pause("two")
        machine.resume("one")
        machine.resume("no such reason")
        assert machine.state == "paused" and machine.life.reasons == ("two",)
        assert not machine.wait(lambda: bool(machine.output), 0.1), "it stands before its first instruction"
        machine.resume("two")
        assert machine.wait(lambda: b"powers off" in machine.output, 60)
        machine.end()
        machine.run()
    assert [event.kind for event in events] == ["started", "resumed", "ended"]


def test_what_the_loop_does_for_others_goes_on_while_paused() -> None:
    with board("keyboard") as machine:
        assert machine.wait(lambda: machine.output.endswith(PROMPT), 60)
        with machine.paused("test"):
            assert machine.call(lambda: 42) == 42
            assert "> " in machine.screen
            machine.keyboard.type("echo typed while paused\n")
        assert machine.wait(lambda: b"\ntyped while paused" in machine.output.replace(b"\r", b""), 60)


def test_keys_reach_a_guest_that_nobody_waits_for() -> None:
    typed, seen = threading.Event(), threading.Event()

    def look(data: bytes) -> None:
        if machine.output.endswith(PROMPT) and not typed.is_set():
            typed.set()
            machine.keyboard.type("echo seen\n")
        elif b"\nseen" in machine.output.replace(b"\r", b""):
            seen.set()

    with board("keyboard") as machine:
        machine.on_output = look
        machine.start()
        assert seen.wait(60)


def refusals(machine: Board) -> list[str]:
    said = []
    for method in (machine.pause, machine.resume, machine.run, lambda: machine.wait(lambda: True)):
        with pytest.raises(UserError) as error:
            method()
        said.append(str(error.value))
    return said


def test_what_waits_for_the_machine_is_refused_inside_it() -> None:
    """In a vCPU's thread as in the loop's; what need not wait runs, or is queued."""
    said: list[list[str]] = []
    with board("hello") as machine:

        def once(data: bytes) -> None:
            machine.on_output = None
            said.append(refusals(machine))
            said.append([machine.call(lambda: "at once")])

        machine.on_output = once
        assert machine.wait(lambda: len(said) == 2, 60)
        assert machine.call(lambda: refusals(machine)) == said[0]
        assert said[0][0] == "pause() waits for the machine, so a device or callback of the machine cannot call it"
        assert said[1] == ["at once"]


def test_call_returns_and_raises() -> None:
    with board("hello") as machine:
        for _ in ("built", "running"):
            assert machine.call(lambda: "value") == "value"
            assert machine.call(lambda: machine.call(lambda: "inside")) == "inside"
            with pytest.raises(ZeroDivisionError):
                machine.call(lambda: 1 // 0)
            machine.start()
        machine.end()
        machine.run()
        assert machine.call(lambda: "ended") == "ended"
        assert machine.call(lambda: machine.call(lambda: "inside")) == "inside"
        assert machine.wait(lambda: "nothing of the kind" in machine.screen) is False


def test_a_tap_ends_with_its_handle() -> None:
    with board("hello") as machine:
        seen = bytearray()
        handle = machine.serial.add(seen.extend)
        assert machine.wait(lambda: b"powers off" in seen, 60)
        handle.remove()
        handle.remove()
        length = len(seen)
        machine.call(lambda: machine.board.com1.receive(b"x"))
        assert machine.wait(lambda: machine.output.endswith(b"x"), 60)
        assert len(seen) == length


def test_trace_channels_are_switched_in_a_running_machine(tmp_path: Path) -> None:
    lines: list[str] = []
    with counting(tmp_path) as machine:
        machine.trace._sink = lambda ns, channel, message: lines.append(f"{channel} {message}")
        assert machine.wait(lambda: count(machine) > 0, 60)
        machine.trace.on("exits", "kvm-run", "i8042")
        assert machine.trace.enabled == ("exits", "i8042", "kvm-run")
        assert machine.wait(lambda: len(lines) > 0, 60)
        machine.call(machine.life.cpus.threads[0].kick)
        assert machine.wait(lambda: len(lines) > 2, 60)
        assert lines[0] == "kvm-run vcpu0 KVM_RUN" and any(line.startswith("exits vcpu0 ") for line in lines)
        machine.keyboard.key(KEY_A, 1)
        assert machine.wait(lambda: any(line.startswith("i8042") for line in lines), 60)
        machine.trace.off("all")
        with machine.paused("test"):
            pass
        lines.clear()
        with machine.paused("test"):
            pass
        assert lines == []
        with pytest.raises(UserError, match="no channel xyz; there are: all, acpi-pm"):
            machine.trace.on("exits", "xyz")
        assert not machine.trace.enabled


# Reset in place


def status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1])


def held() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


WAYS: dict[str, Callable[[Board], None]] = {
    "reset()": lambda machine: machine.reset(),
    "port 0x64": lambda machine: machine.call(lambda: machine.board.pio.write(0x64, 1, 0xFE)),
    "port 0x92": lambda machine: machine.call(lambda: machine.board.pio.write(0x92, 1, 0x01)),
    "port 0xcf9": lambda machine: machine.call(lambda: machine.board.pio.write(0xCF9, 1, 0x06)),
}


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_resets_leave_nothing_behind(irqchip: str) -> None:
    """Every way to reset that needs no guest, PYVMM_SOAK_RESETS times in all: descriptors, threads and resident memory
    stay, and the guest is a new one each time."""
    resets = int(os.environ.get("PYVMM_SOAK_RESETS", "12"))
    with board("keyboard", irqchip=irqchip, virtio_input="standard", rng=True) as machine:
        begins: list[str] = []
        machine.events.add(lambda event: begins.append(event.message) if event.kind == "reset" else None)
        assert machine.wait(lambda: machine.output.endswith(PROMPT), 60)
        before = memory = None
        for n in range(resets):
            how = list(WAYS)[n % len(WAYS)]
            machine.call(machine.output.clear)
            machine.keyboard.key(KEY_A, 1)
            WAYS[how](machine)
            assert machine.wait(lambda: machine.output.endswith(PROMPT), 60), (how, bytes(machine.output))
            machine.keyboard.key(KEY_A, 0)
            machine.keyboard.type("echo again\n")
            assert machine.wait(lambda: machine.output.replace(b"\r", b"").endswith(b"again\n> "), 60)
            assert b"aecho" not in machine.output, "a key held over the reset is let go by it"
            assert len(begins) == n + 1 and begins[-1] == how
            if n == 3:
                before, memory = held(), status("VmRSS")
        assert before is None or held() == before
        assert memory is None or status("VmRSS") - memory < 2048, "kB"


def set_cmos(machine: Board, register: int, value: int) -> None:
    machine.board.pio.write(0x70, 1, register)
    machine.board.pio.write(0x71, 1, value)


def test_the_cmos_ram_stays_and_the_clock_runs_on() -> None:
    with board("keyboard") as machine:
        rtc: CmosRtc = machine.board.rtc
        assert machine.wait(lambda: machine.output.endswith(PROMPT), 60)
        machine.call(lambda: set_cmos(machine, 0x40, 0x5A))
        machine.reset()
        assert machine.board.rtc is rtc
        machine.call(lambda: machine.board.pio.write(0x70, 1, 0x40))
        assert machine.call(lambda: machine.board.pio.read(0x71, 1)) == 0x5A


def test_a_reset_while_it_stands_still() -> None:
    with board("keyboard") as machine:
        assert machine.wait(lambda: machine.output.endswith(PROMPT), 60)
        machine.pause("test")
        machine.call(machine.output.clear)
        machine.reset()
        assert machine.state == "paused"
        assert not machine.wait(lambda: bool(machine.output), 0.1)
        machine.resume("test")
        assert machine.wait(lambda: machine.output.endswith(PROMPT), 60)


SAY_AND_COUNT = "b0 41 e6 e9 66 ff 06 00 05 eb f9"
"""mov al, 'A'; out 0xe9, al; then SPIN."""


@pytest.mark.parametrize("what", ["before_going_on", "reset"])
def test_who_lets_the_guest_go_on_does_first_what_it_may_not_go_on_without(tmp_path: Path, what: str) -> None:
    """The guest asks in an access of its own, and meanwhile somebody else has begun to let the machine stand still."""
    (tmp_path / "code").write_bytes(bytes.fromhex(SAY_AND_COUNT))
    with Board(MachineConfig(memory=MIB, kernel=tmp_path / "code", flat="real@0x1000")) as machine:
        life, counted = machine.life, []

        def note() -> None:
            counted.append(count(machine))

        def wait_and_see() -> None:
            while not counted and not count(machine):
                time.sleep(0.001)

        def asked(data: bytes) -> None:
            heard.remove()
            life.when_standing("the test", lambda: None, lambda error: None)
            life.queue(wait_and_see)
            if what == "reset":
                life.events.add(lambda event: note() if event.kind == "reset" else None)
                life.reset()
            else:
                life.before_going_on(note)

        heard = machine.serial.add(asked)
        machine.start()
        assert machine.wait(lambda: bool(counted), 60)
        assert counted == [0]
        assert machine.wait(lambda: count(machine) > 0, 60)


def test_what_it_may_not_go_on_without_and_that_raises_ends_the_machine(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:

        def fail() -> None:
            raise ZeroDivisionError

        def ask() -> None:
            machine.life.when_standing("the test", lambda: None, lambda error: None)
            machine.life.before_going_on(fail)

        machine.start()
        machine.call(ask)
        with pytest.raises(ZeroDivisionError):
            machine.run(60)


def test_a_restore_leaves_behind_a_reset_that_was_asked_for(tmp_path: Path) -> None:
    """It was that of a guest which is not there any more."""
    with counting(tmp_path) as machine:
        told: list[str] = []
        machine.events.add(lambda event: told.append(event.kind))
        assert machine.wait(lambda: count(machine) > 0, 60)
        snapshot = machine.snapshot()

        def ask() -> None:
            machine.life.queue(lambda: machine.snapshots.go_back(snapshot))
            machine.reset()

        with machine.paused():
            machine.call(ask)
            assert machine.wait(lambda: "restored" in told, 60)
        before = machine.call(lambda: count(machine))
        assert before > 0 and machine.wait(lambda: count(machine) > before, 60)
        assert "reset" not in told


def test_a_snapshot_is_of_the_time_after_a_reset_that_was_asked_for(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:
        told: list[str] = []
        machine.events.add(lambda event: told.append(event.kind))
        machine.start()

        def ask() -> None:
            machine.life.queue(machine.snapshots.take)
            machine.reset()

        with machine.paused():
            machine.call(ask)
            assert machine.wait(lambda: "snapshot" in told, 60)
        assert told.index("reset") < told.index("snapshot") and told.count("reset") == 1


def test_what_came_from_a_pipe_is_kept(tmp_path: Path) -> None:
    """The code counts its starts in CMOS RAM and resets three times."""
    code = bytes.fromhex("b0 41 e6 70 e4 71 fe c0 50 b0 41 e6 70 58 e6 71 3c 03 74 07 ba f9 0c b0 06 ee f4 e6 f4")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(code))
    writer.start()
    with Board(MachineConfig(memory=MIB, kernel=pipe, flat="real@0x1000")) as machine:
        writer.join()
        machine.call(lambda: set_cmos(machine, 0x41, 0))
        assert machine.run(60) == Outcome(End.DEBUG_EXIT, 3)


def test_a_kernel_that_is_gone_at_the_reset_is_told_in_one_line(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:
        assert machine.wait(lambda: count(machine) > 0, 60)
        (tmp_path / "code").unlink()
        machine.call(lambda: machine.board.pio.write(0xCF9, 1, 6))
        with pytest.raises(UserError, match=r"code: No such file or directory$"):
            machine.run(60)


def test_run_returns_when_nothing_of_the_machine_runs_any_more() -> None:
    """What the end still posted has been done: whoever undoes the machine's ties after run() is alone with them."""
    done = []
    with board("shutdown") as machine:

        def slow() -> None:
            time.sleep(0.3)
            done.append(True)

        def told(event: MachineEvent) -> None:
            if event.kind == "ended":
                machine.life.loop.post(slow)

        machine.events.add(told)
        machine.run(60)
        assert done == [True]


def test_a_pause_that_nobody_waits_for_and_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with counting(tmp_path) as machine:
        machine.events.add(lambda event: told.append(event.message) if event.kind == "pause-failed" else None)
        assert machine.wait(lambda: count(machine) > 1000, 60)
        monkeypatch.setattr(machine.life.cpus.threads[0], "wait_until_standing", lambda timeout: False)
        machine.life.pause("test", wait=False)
        assert machine.wait(lambda: bool(told), 60)
        assert told == ["vCPU 0 does not stand still within 10 s: a device holds it"]
        assert machine.state == "running"
        before = count(machine)
        assert machine.wait(lambda: count(machine) != before, 60)
