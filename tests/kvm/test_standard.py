"""Standard output and error that are full, closed or broken: the status is right, and nothing is a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYVMM = Path(sys.executable).with_name("pyvmm")
ACPI = ["acpi", "--out"]
LISTS = [["guests"], ["doctor"], ["run", "--help"], ACPI]
NO_SPACE = b"pyvmm: cannot write to standard output: No space left on device\n"


@pytest.fixture(params=[False, True], ids=["", "unbuffered"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """With PYTHONUNBUFFERED an error comes from print(), without it when Python ends and writes what is left."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**clean, "PYTHONUNBUFFERED": "1"} if request.param else clean


def run(arguments: list[str], environment: dict[str, str], redirect: str) -> subprocess.CompletedProcess[bytes]:
    """Under a shell, with its redirections."""
    command = [str(PYVMM), *arguments]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirect}', "bash", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
    )


@pytest.mark.parametrize("arguments", LISTS, ids=lambda arguments: arguments[0])
def test_a_full_disk(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    wanted = [*arguments, str(tmp_path)] if arguments is ACPI else arguments
    ran = run(wanted, environment, ">/dev/full")
    assert (ran.returncode, ran.stderr) == (2, NO_SPACE)


@pytest.mark.parametrize("arguments", LISTS, ids=lambda arguments: arguments[0])
def test_a_reader_that_has_gone(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    wanted = [*arguments, str(tmp_path)] if arguments is ACPI else arguments
    ran = run(wanted, environment, "| true; exit ${PIPESTATUS[0]}")
    assert ran.returncode in (0, 128 + 13), "as fast as it was"
    assert ran.stderr == b""


@pytest.mark.parametrize("arguments", LISTS, ids=lambda arguments: arguments[0])
def test_standard_output_that_is_closed(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    wanted = [*arguments, str(tmp_path)] if arguments is ACPI else arguments
    ran = run(wanted, environment, ">&-")
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "2> >(true)"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "pio"], 16),
        (["run", "pio", "--trace", "all"], 16),
        (["run", "pio", "--screenshot", "/no/such/place.png"], 2),
        (["run", "hlt", "--timeout", "0.3"], 124),
        (["run", "nobody"], 2),
        (["run", "-m", "0"], 2),
        (["no-such-command"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_standard_error_that_nobody_reads(
    arguments: list[str], status: int, redirect: str, environment: dict[str, str]
) -> None:
    """What would be said there is lost, and never said on standard output instead."""
    ran = run(arguments, environment, redirect)
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, b"", b"")


def test_the_guests_output_on_a_full_disk(environment: dict[str, str], tmp_path: Path) -> None:
    """The guest goes on, as with a serial cable that is pulled; but the user is told."""
    ran = run(["run", "pio-bench", "--set", "outs=10", "--set", "ins=10"], environment, ">/dev/full")
    assert ran.returncode == 16
    lost, end = ran.stderr.splitlines()
    assert lost == b"pyvmm: the guest's output went nowhere: No space left on device"
    assert end == b"pyvmm: debug-exit 0"


def test_names_that_are_no_text(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(["run", os.fsdecode(b"\xff\xfe")], environment, "")
    assert (ran.returncode, ran.stderr.count(b"\n")) == (2, 1)
    ran = run([*ACPI, os.fsdecode(os.fsencode(tmp_path) + b"/\xff")], environment, "")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]


def test_a_guest_without_a_name(environment: dict[str, str]) -> None:
    ran = run(["run", ""], environment, "")
    assert ran.returncode == 2 and ran.stderr.startswith(b"pyvmm: there is no guest ''; there are: ")
