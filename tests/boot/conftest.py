"""Fixtures of the tests that boot Linux. They run in the lab (scripts/test does that), and fail anywhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.console import Console, Start
from tests.rig.lab import GUESTS26, PYVMM


@pytest.fixture(scope="session", autouse=True)
def in_the_lab() -> None:
    if not os.environ.get("PYVMM_IN_LAB"):
        pytest.fail("these tests run in the lab: scripts/test boot, or scripts/lab -- .venv/bin/pytest tests/boot")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program as a Console(command, …); it is killed when the test ends."""
    consoles: list[Console] = []

    def start_console(*command: str | os.PathLike[str], **options: object) -> Console:
        consoles.append(Console(command, **options))  # type: ignore[arg-type]
        return consoles[-1]

    yield start_console
    for console in consoles:
        console.close()


@pytest.fixture
def pyvmm(start: Start) -> Start:
    """`pyvmm("run", "-k", kernel, …, on_pty=True)`: our command as a Console."""
    return lambda *words, **options: start(PYVMM, *words, **options)


@pytest.fixture(scope="session")
def guests26() -> Path:
    """The folder with the Linux 2.6 images, which are not ours to ship."""
    if not GUESTS26.is_dir():
        pytest.fail(f"{GUESTS26} is missing: put the Linux 2.6 images there, or their folder's name in PYVMM_GUESTS26")
    return GUESTS26
