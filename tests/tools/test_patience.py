"""tests/rig: what counts as waiting for a program, and what is known of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.testing import patience
from pyvmm.testing.patience import LOOK_S, MOST, Patience
from pyvmm.testing.process import catches, cpu_time, is_stopped, rests, wants_to_run


class Program:
    """In the place of a process: what the clock, its CPU time and its state are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.ran = 0.0
        self.runnable = True
        self.steps = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(patience, "wants_to_run", lambda pid: self.runnable)
        monkeypatch.setattr(Patience, "_cpu_time", lambda patience: self.ran)
        self.patience = Patience(10, 1, lambda: self.steps)

    def until_over(self, *, share: float = 0.0, step: float = 0.0) -> float:
        """Seconds until nobody waits any more, at most 1,000; it gets *share* of a processor, and is a step further
        each *step* seconds."""
        start = self.now
        while not self.patience.is_over and self.now - start < 1000:
            self.now += LOOK_S
            self.ran += LOOK_S * share
            self.steps = int(self.now / step) if step else 0
        return self.now - start


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(monkeypatch)


def test_one_that_waits_for_a_processor_costs_no_patience(program: Program) -> None:
    assert program.until_over(share=0) == 1000


def test_one_that_gets_a_little_of_a_processor_has_as_much_time_of_its_own(program: Program) -> None:
    assert 100 <= program.until_over(share=0.1) <= 100 + 11 * LOOK_S


def test_one_that_sleeps_uses_it_up(program: Program) -> None:
    program.runnable = False
    assert 10 <= program.until_over() <= 10 + 2 * LOOK_S


def test_each_step_begins_it_again_but_not_for_ever(program: Program) -> None:
    program.runnable = False
    assert 10 * MOST <= program.until_over(step=9) <= 10 * MOST + 2 * LOOK_S


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    code = "import signal; signal.signal(signal.SIGUSR1, print); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"\n"
        yield process
        process.kill()


def test_a_program_that_sleeps_and_one_that_ends(sleeper: subprocess.Popen[bytes]) -> None:
    assert rests(sleeper.pid) and not wants_to_run(sleeper.pid)
    assert catches(sleeper.pid, signal.SIGUSR1) and not catches(sleeper.pid, signal.SIGUSR2)
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    assert is_stopped(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not rests(sleeper.pid)


def test_a_program_whose_child_is_busy() -> None:
    with subprocess.Popen(["sh", "-c", "while :; do :; done & echo; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"\n"
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        try:
            patience, ran = Patience(1, process.pid), cpu_time(child)
            while not patience.is_over:
                assert wants_to_run(process.pid)
                time.sleep(LOOK_S / 10)
            assert cpu_time(child) - ran > 0.9, "as long as that took"
        finally:
            os.kill(child, signal.SIGKILL)
