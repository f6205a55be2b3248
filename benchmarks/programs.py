"""The programs in C that measurements need, compiled on first use, and the commands that are measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("PYVMM_CACHE") or ROOT / ".cache").resolve()
INSTALLED = CACHE / "installed" / "bin"
"""pyvmm as a user has it, which scripts/bench installs: the finder of an editable install is a tenth of a start."""
PYVMM = INSTALLED / "pyvmm"
PYTHON = ROOT / ".venv" / "bin" / "python"


class BenchError(Exception):
    """Something that was to be measured does not work; the text says what."""


def compiled(name: str, *flags: str) -> Path:
    """The program made from benchmarks/NAME.c; *flags* are the compiler's."""
    source = Path(__file__).with_name(f"{name}.c")
    program = CACHE / "bench" / name
    newest = max(file.stat().st_mtime for file in (source, *source.parent.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < newest:
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", *flags, "-o", program, source], check=True)
    return program


def output_of(command: Sequence[str | Path], status: int, timeout: float = 120) -> str:
    """What *command* prints; raises BenchError where it does not end with *status* in time."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{Path(words[0]).name} ran for more than {timeout:g} s") from None
    if done.returncode != status:
        message = done.stderr.decode(errors="replace").strip()
        raise BenchError(f"{Path(words[0]).name} ended with status {done.returncode}, not {status}: {message}")
    return done.stdout.decode(errors="replace")


def say(text: str) -> None:
    """Progress, beside the result."""
    print(f"scripts/bench: {text}", file=sys.stderr, flush=True)
