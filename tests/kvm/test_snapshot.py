"""Snapshots on real KVM: the machine goes back to any of them, and on from there as it went on before."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import pytest

from kvm_cffi import Exit, Vcpu
from pyvmm.errors import UserError
from pyvmm.input.codes import KEY_A
from pyvmm.machine.outcome import End
from pyvmm.machine.snapshot import Snapshot
from pyvmm.units import MIB
from tests.rig.board import Board, board, count, counting

IRQCHIPS = ["kernel", "split", "user"]
GREETING = b"powers off.\r\n"


def echo(machine: Board, text: bytes) -> bytes:
    """What the guest prints for *text*, typed on its serial port."""
    for byte in text:
        length = len(machine.output)
        assert machine.call(lambda byte=byte: machine.board.com1.receive(bytes((byte,)))) == 1  # type: ignore[misc]
        assert machine.wait(lambda n=length: len(machine.output) > n, 60), bytes(machine.output)  # type: ignore[misc]
    return bytes(machine.output)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_back_and_on_again(irqchip: str) -> None:
    with board("hello", irqchip=irqchip) as machine:
        assert machine.wait(lambda: machine.output.endswith(GREETING), 60)
        snapshot = machine.snapshot()
        assert 0 < snapshot.size < machine.config.ram_size
        for text in (b"one", b"another", b"the last"):
            machine.call(machine.output.clear)
            assert echo(machine, text) == text
            machine.restore(snapshot)
            assert machine.state == "running"


CHECKING = ["string-io", "uart", "timer", "rtc", "mmio", "irq-window"]
"""Guests that check for themselves what they meet, and end with what they found."""
MOMENTS = int(os.environ.get("PYVMM_SOAK_MOMENTS", "5"))
FEW = 10
"""Exits; a guest that has fewer is stopped by the clock."""


class StopAt:
    """An observer that has the machine pause after exit number *number*, before the guest runs on."""

    def __init__(self, machine: Board, number: int) -> None:
        self._machine = machine
        self._number = number
        machine.life.cpus.observe(self)

    def entering(self, vcpu: Vcpu) -> None: ...

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None: ...

    def exited(self, vcpu: Vcpu, exit: Exit) -> None:
        self._number -= 1
        if self._number == 0:
            self._machine.life.cpus.hold()
            self._machine.life.pause("moment", wait=False)

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None: ...


def run_on(machine: Board, exits: int, seconds: float) -> bool:
    """Let it run so far and stand; false where it ended before."""
    if exits:
        StopAt(machine, exits)
        machine.resume("moment")
        machine.wait(lambda: machine.state != "running", 60)
    else:
        machine.resume("moment")
        machine.wait(lambda: False, seconds)
        if machine.outcome is None:
            machine.pause("moment")
    return machine.outcome is None


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("guest", CHECKING)
def test_at_any_moment(guest: str, irqchip: str) -> None:
    """Mid string I/O, with an interrupt on its way, in HLT: run on, go back, run on to the same end."""
    with board(guest, irqchip=irqchip) as machine:
        start = time.monotonic()
        expected = machine.finish()
        seconds = time.monotonic() - start
        printed, exits = bytes(machine.output), sum(vcpu.exits for vcpu in machine.vcpus)
    assert expected.end is End.DEBUG_EXIT
    seed, tried = random.Random(f"{guest} {irqchip}"), 0
    wanted = 1 if guest == "rtc" else MOMENTS  # it takes seconds
    for _ in range(20 * wanted):
        if tried == wanted:
            break
        seconds *= 0.9  # it has ended before the second moment now and then: sooner, at the next try
        first, second = sorted(seed.sample(range(1, exits), 2)) if exits > FEW else (0, 0)
        with board(guest, irqchip=irqchip) as machine:
            machine.pause("moment")
            if not run_on(machine, first, seed.random() * seconds):
                continue
            before, snapshot = bytes(machine.output), machine.snapshot()
            if not run_on(machine, second - first, seed.random() * seconds):
                continue
            machine.restore(snapshot)
            machine.output[:] = before
            machine.resume("moment")
            assert machine.finish() == expected
            assert len(machine.output) == len(printed)
            if guest != "rtc":  # which prints the time
                assert machine.output == printed
            tried += 1
    assert tried == wanted


def test_many_in_any_order(tmp_path: Path) -> None:
    """Each has its count and its pages; none is disturbed by going back to another or by one that was let go."""
    seed = random.Random(10)
    with counting(tmp_path) as machine:
        taken: list[tuple[Snapshot, int, bytes]] = []
        for number in range(8):
            assert machine.wait(lambda n=number: count(machine) > 1000 * n, 60)  # type: ignore[misc]
            with machine.paused():
                page = seed.randbytes(4096)
                machine.memory.write(0x10000 + 0x2000 * (number // 2), page)  # ours, which KVM does not log
                taken.append((machine.snapshot(), count(machine), machine.memory.read(0, MIB // 2)))
        assert taken[0][0].size > taken[1][0].size > 0
        for _ in range(40):
            if len(taken) > 3 and seed.random() < 0.1:
                del taken[seed.randrange(len(taken))]
            snapshot, counted, ram = seed.choice(taken)
            with machine.paused():
                machine.restore(snapshot)
                assert count(machine) == counted
                assert machine.memory.read(0, MIB // 2) == ram
            assert machine.wait(lambda n=counted: count(machine) != n, 60)  # type: ignore[misc]


def test_the_log_is_on_only_while_there_is_a_snapshot(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:
        ram = machine.snapshots.ram
        machine.start()
        snapshot = machine.snapshot()
        assert ram.logging and machine.memory.written is not None
        machine.restore(snapshot)
        del snapshot
        gc.collect()
        assert machine.wait(lambda: not ram.logging, 60)
        assert machine.memory.written is None
        assert machine.snapshot().size > 0


def test_a_paused_machine_stays_paused(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:
        built = machine.snapshot()
        assert str(machine.state) == "built"
        assert machine.wait(lambda: count(machine) > 0, 60)
        machine.pause()
        later = machine.snapshot()
        for snapshot, has_run in ((built, False), (later, True), (built, False)):
            machine.restore(snapshot)
            assert str(machine.state) == "paused"
            assert (count(machine) > 0) is has_run
        machine.resume()
        assert machine.wait(lambda: count(machine) > 0, 60)


def test_who_may_not(tmp_path: Path) -> None:
    with counting(tmp_path) as machine, counting(tmp_path) as other:
        machine.start()
        snapshot = machine.snapshot()
        with pytest.raises(UserError, match="this snapshot is of another machine"):
            other.restore(snapshot)
        for call in (machine.snapshot, lambda: machine.restore(snapshot)):
            with pytest.raises(UserError, match=r"\(\) waits for the machine, so a device or callback"):
                machine.call(call)
        machine.end()
        machine.run()
        with pytest.raises(UserError, match=r"the machine has ended: snapshot\(\) needs one that lives"):
            machine.snapshot()


def test_it_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    with counting(tmp_path) as machine:
        machine.events.add(lambda event: told.append(event.kind))
        machine.start()
        machine.restore(machine.snapshot())
        machine.call(lambda: None)
        assert told == ["started", "snapshot", "restored"]


def test_a_key_that_was_held_then_is_released() -> None:
    """The guest believes it held; nobody holds it any more."""
    with board("keyboard") as machine:
        assert machine.wait(lambda: "> " in machine.screen, 60)
        source = machine.board.router.source("test")
        machine.call(lambda: source.key(KEY_A, 1))
        assert machine.wait(lambda: "> a" in machine.screen, 60)
        snapshot = machine.snapshot()
        machine.call(lambda: source.key(KEY_A, 0))
        machine.restore(snapshot)
        assert machine.wait(lambda: machine.board.router.keyboard_idle, 60)
        machine.keyboard.type("b")
        assert machine.wait(lambda: "> ab" in machine.screen, 60), machine.screen
