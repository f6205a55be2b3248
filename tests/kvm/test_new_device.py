"""What `pyvmm new-device` writes is green at once, and red when the device is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.cli.new_device import EXAMPLE, new_device

PYVMM = [sys.executable, "-m", "pyvmm"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_device("led", tmp_path, EXAMPLE)
    return tmp_path


def pytest_in(folder: Path, *options: str) -> tuple[int, str]:
    ran = subprocess.run([sys.executable, "-m", "pytest", "-v", *options], cwd=folder, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "led.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_green(folder: Path) -> None:
    status, output = pytest_in(folder)
    assert status == 0 and "3 passed" in output, output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 * value", "3 * value"),
        ("set_level(self.done and self.enabled)", "set_level(False)"),
        ("0xD0B1  #", "0xD0B2  #"),
    ],
    ids=["a wrong value", "no interrupt", "another ID"],
)
def test_red(folder: Path, old: str, new: str) -> None:
    """Both tests see it: the one on a bus, and the driver in the guest."""
    change(folder, old, new)
    status, output = pytest_in(folder)
    assert status != 0 and "test_alone FAILED" in output and "passed" not in output, output
    assert output.count("test_with_a_driver") >= 2 and "test_with_a_driver[21] PASSED" not in output, output


def test_the_guest_is_a_driver_to_talk_to(folder: Path) -> None:
    """Of the device wherever it is, by other IDs too; without it the guest says so."""
    run = [*PYVMM, "run", "./led_guest", "--timeout", "250"]
    device = ["--device", "led.py:Led"]

    def talk(*options: str) -> tuple[int, str]:
        ran = subprocess.run([*run, *options], input="21\n4294967295\nq", cwd=folder, capture_output=True, text=True)
        return ran.returncode, ran.stdout

    status, printed = talk(*device, "--root-ports", "1")
    assert status == 0 and "registers at 0x" in printed and "identification 0xd0b1." in printed
    assert printed.endswith("> 21\n42\n> 4294967295\n4294967294\n> \n")
    change(folder, "0xD0B1  #", "0xD0B2  #")
    assert talk(*device) == (17, "There is no such device: pyvmm run ... --device FILE.py:CLASS\n")
    assert talk(*device, "--set", "id=0xD0B21234") == (0, printed.replace("slot 2", "slot 1"))


def test_a_driver_that_gets_no_interrupt_says_so(folder: Path) -> None:
    change(folder, "set_level(self.done and self.enabled)", "set_level(False)")
    run = [*PYVMM, "run", "./led_guest", "--device", "led.py:Led", "--timeout", "250"]
    ran = subprocess.run(run, input="21\nq", cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0 and "no interrupt: 42\n" in ran.stdout


def test_what_a_device_forgets_is_red_on_the_restored_machine(folder: Path) -> None:
    """--pyvmm-lifecycle: the driver enabled the interrupt before the snapshot."""
    status, output = pytest_in(folder, "--pyvmm-lifecycle")
    assert status == 0 and "5 passed" in output, output
    change(folder, '("number", "done", "enabled")', '("number", "done")')
    assert pytest_in(folder)[0] == 0
    status, output = pytest_in(folder, "--pyvmm-lifecycle")
    assert status == 1 and "2 failed, 3 passed" in output, output
    for number in ("21", "2147483649"):
        assert f"test_with_a_driver[booted-{number}] PASSED" in output
        assert f"test_with_a_driver[restored-{number}] FAILED" in output
    assert "no interrupt: 42" in output
