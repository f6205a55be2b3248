"""Suspend to RAM, with the guest s3: what wakes it, and what a machine that sleeps is like to who holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.acpi.build import build
from pyvmm.board import layout
from pyvmm.config import MachineConfig
from pyvmm.devices.acpi_pm import GPE0_EN, GPE_KEYBOARD, PM1_CNT, PWRBTN_STS, RTC_STS, SLP_EN, SLPBTN_STS, WAK_STS
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.saved import Saved
from tests.rig.board import Board, board

OK = Outcome(End.DEBUG_EXIT, 0)
S3 = SLP_EN | 1 << 10
IRQCHIPS = ["kernel", "split", "user"]


def events(machine: Board) -> list[tuple[str, str]]:
    """Those of sleep, as they come."""
    found: list[tuple[str, str]] = []

    def add(kind: str, message: str) -> None:
        if kind in ("sleep", "wake", "reset"):
            found.append((kind, message))

    machine.events.add(lambda event: add(*event))
    return found


@contextmanager
def sleeping(sleeps: int = 1, **options: object) -> Iterator[tuple[Board, list[tuple[str, str]]]]:
    """The guest, which has set no alarm and sleeps."""
    with board("s3", parameters={"sleeps": sleeps, "alarm": 0}, **options) as machine:
        told = events(machine)
        falls_asleep(machine, told)
        assert told == [("sleep", "")]
        yield machine, told


def falls_asleep(machine: Board, told: list[tuple[str, str]]) -> None:
    assert machine.wait(lambda: bool(told) and told[-1][0] == "sleep", 60), bytes(machine.output)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_alarm_wakes_it(irqchip: str) -> None:
    with board("s3", irqchip=irqchip) as machine:
        told = events(machine)
        assert machine.finish() == OK
        assert bytes(machine.output) == b"swsw"
        assert told == [("sleep", ""), ("wake", "RTC alarm")] * 2
        assert machine.value("status") == WAK_STS | RTC_STS


@pytest.mark.parametrize(
    ("press", "reason", "status"),
    [
        (Board.power_button, "power button", PWRBTN_STS),
        (Board.sleep_button, "sleep button", SLPBTN_STS),
        (lambda machine: machine.keyboard.press("a"), "key", 0),
    ],
)
def test_a_person_wakes_it(press: Callable[[Board], None], reason: str, status: int) -> None:
    with sleeping() as (machine, told):
        exits = sum(vcpu.exits for vcpu in machine.vcpus)
        machine.nmi()
        machine.call(lambda: machine.board.pio.write(layout.ACPI_PM + GPE0_EN, 2, 1 << GPE_KEYBOARD))
        assert not machine.wait(lambda: machine.outcome is not None, 0.2)
        assert sum(vcpu.exits for vcpu in machine.vcpus) == exits, "it executes nothing"
        press(machine)
        assert machine.finish() == OK
        assert told == [("sleep", ""), ("wake", reason)]
        assert machine.value("status") == WAK_STS | status


def test_a_key_wakes_nobody_who_has_not_asked_for_it() -> None:
    with sleeping() as (machine, told):
        machine.keyboard.press("a")
        machine.call(lambda: None)
        assert machine.board.acpi_pm.asleep and told == [("sleep", "")]
        machine.power_button()
        assert machine.finish() == OK


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_with_more_vcpus_and_with_what_was_in_their_way(irqchip: str) -> None:
    """The boot CPU goes on alone."""
    with sleeping(sleeps=3, irqchip=irqchip, cpus=1 if irqchip == "user" else 4) as (machine, told):
        for _ in range(2):
            machine.power_button()
            assert machine.wait(lambda: machine.value("woken") == len(told) // 2, 60)
            falls_asleep(machine, told)
        machine.power_button()
        assert machine.finish() == OK


def test_pause_and_resume_let_it_sleep() -> None:
    with sleeping() as (machine, _):
        machine.pause()
        machine.power_button()
        machine.call(lambda: None)
        assert machine.state == "paused" and machine.value("woken") == 0
        machine.resume()
        assert machine.finish() == OK
    with sleeping() as (machine, _):
        with machine.paused():
            assert machine.state == "paused"
        assert not machine.wait(lambda: machine.value("woken") != 0, 0.1)
        machine.power_button()
        assert machine.finish() == OK


def test_a_reset_ends_it() -> None:
    with sleeping() as (machine, told):
        machine.reset()
        assert machine.wait(lambda: told[1:] == [("reset", "reset()"), ("sleep", "")], 60), told
        assert bytes(machine.output) == b"ss"
        machine.power_button()
        assert machine.finish() == OK


def test_it_ends_while_it_sleeps() -> None:
    with sleeping() as (machine, _):
        machine.end()
        assert machine.finish().end is End.QUIT


@pytest.mark.parametrize("vector", [0, 0x100000, 0xFFFFFFFF])
def test_without_a_vector_waking_is_a_reset(vector: int) -> None:
    with sleeping() as (machine, told):
        machine.memory.write_int(layout.FACS + 12, 4, vector)
        machine.power_button()
        assert machine.wait(lambda: len(told) == 4, 60), told
        assert told[1:] == [("wake", "power button"), ("reset", "no waking vector"), ("sleep", "")]


def test_snapshots_of_a_machine_that_sleeps(tmp_path: Path) -> None:
    with sleeping() as (machine, told):
        asleep = machine.snapshot()
        asleep.save(tmp_path / "asleep")
        machine.power_button()
        assert machine.wait(lambda: machine.value("woken") == 1 or machine.outcome is not None, 60)
    with Board((saved := Saved(str(tmp_path / "asleep"))).config, saved=saved) as machine:
        told = events(machine)
        machine.start()
        assert not machine.wait(lambda: machine.value("woken") != 0, 0.1)
        machine.power_button()
        assert machine.finish() == OK
        assert told == [("wake", "power button")]


def test_back_and_forth_between_sleep_and_wake() -> None:
    with board("s3", parameters={"sleeps": 9, "alarm": 0}) as machine:
        told = events(machine)
        awake = machine.snapshot()
        falls_asleep(machine, told)
        asleep = machine.snapshot()
        told.clear()  # before it runs: it may sleep again at once
        machine.restore(awake)
        falls_asleep(machine, told)
        machine.power_button()
        assert machine.wait(lambda: machine.value("woken") == 1, 60)
        machine.restore(asleep)
        assert machine.value("woken") == 0 and not machine.wait(lambda: machine.value("woken") != 0, 0.1)
        machine.power_button()
        assert machine.wait(lambda: machine.value("woken") == 1, 60)


def test_a_foreign_firmware_has_no_s3(tmp_path: Path) -> None:
    """Its tables are its own, and so is the way back."""
    image = tmp_path / "rom"
    image.write_bytes(b"\xf4" * 65536)
    with Board(MachineConfig(firmware=str(image))) as machine:
        machine.start()
        machine.call(lambda: machine.board.pio.write(layout.ACPI_PM + PM1_CNT, 2, S3))
        assert not machine.board.acpi_pm.asleep


def test_the_facs_is_where_a_wake_looks() -> None:
    with board("s3") as machine:
        (facs,) = (table for table in build(machine.board.platform()).place() if table.name == "facs")
        assert (facs.gpa, len(facs.data)) == (layout.FACS, layout.FACS_SIZE)
