"""The command before cli.main has it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "pyvmm.cli.arguments":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["pyvmm", "--help"]
from pyvmm.__main__ import main
{before}
sys.exit(main())
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_python_m_pyvmm_is_the_command() -> None:
    said = python("-m", "pyvmm", "--help")
    assert said.returncode == 0 and said.stdout.startswith("usage: pyvmm "), said
    said = python("-m", "pyvmm", "no-such-command")
    assert said.returncode == 2, said


@pytest.mark.parametrize(
    ("before", "status"), [("", -signal.SIGINT), ("signal.signal(signal.SIGINT, signal.SIG_IGN)", 0)]
)
def test_ctrl_c_while_modules_are_imported_is_no_traceback(before: str, status: int) -> None:
    said = python("-c", INTERRUPTED.format(before=before))
    assert (said.returncode, said.stderr) == (status, "")
