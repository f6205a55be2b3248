"""Tests a second under pytest's plugin, each in a guest that is put back, restored from a file, or booted anew.

Every test lets guests/dirty write to 100 pages of 128 MiB. What is timed is pytest's loop over the tests, the one boot
for all of them included; Python's start, imports and collection are not.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.document import table
from benchmarks.programs import PYTHON, BenchError, say
from benchmarks.stats import in_turn, paired_ratio, spread

PAGES: Final = 100
TESTS: Final = 200
"""A run of each."""
KINDS: Final[dict[str, tuple[str, ...]]] = {
    "vm": ("-k", "put_back and not restored"),
    "restored": ("-k", "put_back and restored", "--pyvmm-lifecycle"),
    "booted": ("-k", "booted_anew"),
    "nothing": ("-k", "nothing"),
}
SECONDS: Final = "seconds"
"""The file where a run leaves its time."""

CONFTEST: Final = f"""
import time
from pathlib import Path
import pytest
import pyvmm.testing.vm

@pytest.hookimpl(hookwrapper=True)
def pytest_runtestloop(session):
    start = time.perf_counter()
    yield
    Path({SECONDS!r}).write_text(repr(time.perf_counter() - start))
"""
SOURCE: Final = f"""
import time
import pytest
from pyvmm import guests

GUEST = dict(guest="dirty", guest_parameters=(("passes", 0), ("pages", {PAGES})), memory=128 << 20)
DONE = guests.load("dirty").symbols["done"]
each = pytest.mark.parametrize("n", range({TESTS}))

def a_pass(machine):
    before = machine.memory.read_int(DONE, 4)
    while machine.memory.read_int(DONE, 4) < before + 2:
        time.sleep(0.0002)

@pytest.mark.pyvmm(ready="", **GUEST)
@each
def test_put_back(vm, n):
    a_pass(vm.machine)

@each
def test_booted_anew(machine_factory, n):
    machine = machine_factory(**GUEST)
    machine.start()
    a_pass(machine)

@each
def test_nothing(n):
    pass
"""


def run(folder: Path, kind: str) -> float:
    """Tests a second."""
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    seconds = folder / SECONDS
    seconds.unlink(missing_ok=True)
    ran = subprocess.run([*command, *KINDS[kind]], cwd=folder, capture_output=True, text=True)
    if ran.returncode != 0 or f"{TESTS} passed" not in ran.stdout:
        raise BenchError(f"pytest, {kind}: {' '.join(ran.stdout.splitlines()[-1:])}{ran.stderr[-300:]}")
    return TESTS / float(seconds.read_text())


def measure(rounds: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_dirty.py").write_text(SOURCE)

        def contender(kind: str) -> Callable[[], float]:
            return lambda: run(folder, kind)

        runs = in_turn({kind: contender(kind) for kind in KINDS}, rounds, say)
    names = {
        "vm": f"**`vm`: booted once, put back for each, {PAGES} pages dirty**",
        "restored": "`vm[restored]` of `--pyvmm-lifecycle`: a machine from the file for each",
        "booted": "`machine_factory`: booted for each",
        "nothing": "pytest alone: tests that do nothing",
    }
    rows = []
    for kind, name in names.items():
        ratio = f"{paired_ratio(runs[kind], runs['booted']):.2f}"
        per_test = f"{median(1e3 / value for value in runs[kind]):.2f}"
        rows.append([name, spread(runs[kind], 0), per_test, ratio])
    head = ["", "tests a second (least–most)", "ms a test", "times booting each"]
    return table(head, rows) + f"\n\n{TESTS} tests a round of each."
