"""A kernel that panics: told from a guest that only prints an old log, and from one that resets afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine import panic
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import Board

REASON = "Kernel panic - not syncing: Attempted to kill init!"
SPIN, HALT, RESET, ON = "eb fe", "fa f4 eb fc", "ba f90c b0 06 ee f4", "b0 05 e6 f4"


@pytest.fixture(autouse=True)
def looking_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panic, "LOOK_NS", 100_000_000)


def run(tmp_path: Path, text: str, then: str, timeout: float = 60, output: bytes = b"", **options: object) -> Outcome:
    """Print *text* on COM1, then go on as *then* says."""
    code = bytes.fromhex(f"ba f803 be 3010 b9 {len(text).to_bytes(2, 'little').hex()} f3 6e {then}")
    (tmp_path / "code").write_bytes(code.ljust(0x30, b"\xf4") + text.encode())
    config = MachineConfig(memory=MIB, kernel=tmp_path / "code", flat="real@0x1000", **options)  # type: ignore[arg-type]
    with Board(config) as machine:
        outcome = machine.run(timeout)
        assert machine.output == text.encode() + output
        return outcome


@pytest.mark.parametrize("irqchip", ["kernel", "user"])
def test_a_kernel_that_spins_after_its_panic(tmp_path: Path, irqchip: str) -> None:
    outcome = run(tmp_path, f"[    1.234567] {REASON}\r\n", SPIN, irqchip=irqchip)
    assert (outcome.end, outcome.message, outcome.status) == (End.PANIC, REASON, 4)
    assert re.fullmatch(rf"vCPU 0 spins at 0x[0-9a-f]+\n\[    1.234567\] {REASON}", outcome.report)


def test_a_kernel_that_tells_more_of_its_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than the looks take: the last of it is in the report. 160 dots, before each a loop of 65,536."""
    monkeypatch.setattr(panic, "LOOK_NS", 250_000_000)
    monkeypatch.setattr(panic, "TELLING", 10_000)  # on a host as busy as it likes
    dots = "b9a000 51 31c9 e2fe 59 b02e ee e2f5 b00a ee"
    outcome = run(tmp_path, f"{REASON}\n", f"{dots} {SPIN}", timeout=600, output=b"." * 160 + b"\n")
    assert (outcome.end, outcome.message) == (End.PANIC, REASON)
    assert outcome.report.splitlines()[1:] == [REASON, "." * 99 + "…"]


def test_a_kernel_that_resets_after_its_panic(tmp_path: Path) -> None:
    outcome = run(tmp_path, f"{REASON}\n", RESET)
    assert (outcome.end, outcome.message) == (End.PANIC, REASON)


def test_a_guest_that_prints_an_old_log_and_sleeps(tmp_path: Path) -> None:
    assert run(tmp_path, f"{REASON}\n", HALT, timeout=2).end is End.TIMEOUT


def test_a_guest_that_prints_an_old_log_and_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, f"{REASON}\n", ON) == Outcome(End.DEBUG_EXIT, 5)


def test_a_line_that_only_speaks_of_one(tmp_path: Path) -> None:
    assert run(tmp_path, f"$ grep '{REASON}' log\n", SPIN, timeout=0.5).end is End.TIMEOUT
    wanted = Outcome(End.RESET, message="port 0xcf9")
    assert run(tmp_path, f"$ grep '{REASON}' log\n", RESET, no_reboot=True) == wanted
