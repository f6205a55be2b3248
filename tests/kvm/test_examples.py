"""The examples of docs/ that need a machine do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_typing_from_python() -> None:
    example = ROOT / "docs" / "examples" / "type.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["> echo Hello from Python", "Hello from Python", ">", "power-off"]


def test_a_life_from_python() -> None:
    example = ROOT / "docs" / "examples" / "life.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("started", "paused", "executes", "resumed", "reset", "powered-off", "ended"),
    ]


def test_undo_from_python() -> None:
    example = ROOT / "docs" / "examples" / "undo.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [f"{word} is undone: True" for word in ("one", "two", "three")]
