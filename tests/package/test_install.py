"""`pip install` into an environment with nothing in it, dependencies and all, and then the command that this brings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 300
"""For pip, whose index may be slow. With one that is near, all of this takes about fifteen seconds."""
MODULES = ("cffi", "evdev", "pyudev", "Xlib", "PIL")
"""What pyvmm imports of others."""


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder of commands."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip: list[str | Path] = [
        environment / "bin" / "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        source,
    ]
    ran = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS)
    if ran.returncode != 0:
        pytest.fail(f"pip install failed, which needs its index and a C compiler:\n{ran.stdout[-3000:]}", pytrace=False)
    return environment / "bin"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process that cannot find this checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=clean, timeout=100
    )


def test_every_dependency_comes_with_it(installed: Path) -> None:
    code = f"import pyvmm; print(pyvmm.__file__); import {', '.join(MODULES)}"
    ran = run(installed / "python", "-c", code)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(str(installed.parent))


def test_the_default_guest_runs(installed: Path) -> None:
    """On /dev/kvm, which this needs as tests/kvm does."""
    script = ["--type-after", r"> :echo installed\n", "--type-after", "installed:<ctrl-d>", "--timeout", "60"]
    ran = run(installed / "pyvmm", "run", *script)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "> echo installed\ninstalled\n" in ran.stdout


def test_the_modules_that_only_some_options_need(installed: Path, tmp_path: Path) -> None:
    picture = tmp_path / "screen.png"
    ran = run(installed / "pyvmm", "run", "hlt", "--screenshot", picture, "--timeout", "0.3")
    assert (ran.returncode, picture.read_bytes()[:4]) == (124, b"\x89PNG"), ran.stderr
    ran = run(installed / "pyvmm", "run", "--display", "x11", "hello")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1) and "X display" in ran.stderr
    ran = run(installed / "pyvmm", "guests")
    assert "keyboard " in ran.stdout


def test_a_new_device_is_green(installed: Path, tmp_path: Path) -> None:
    """With nothing but pyvmm and pytest: no compiler, and none of this checkout."""
    pip = str(installed / "pip")
    command = [pip, "install", "--disable-pip-version-check", "--no-input", "pytest"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    folder = tmp_path / "mine"
    ran = run(installed / "pyvmm", "new-device", "led", "--into", folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    ran = run(installed / "pytest", folder, "--rootdir", folder)
    assert ran.returncode == 0 and " 3 passed" in ran.stdout, ran.stdout + ran.stderr
