"""The generated input codes against python-evdev's, which come from the header by another road (its C extension)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import evdev.ecodes
import pytest

from pyvmm.input import codes as input_codes

FAMILIES = ("EV_", "SYN_", "KEY_", "BTN_", "REL_", "ABS_", "MSC_", "SW_", "LED_", "REP_", "SND_")
OURS = {name: value for name, value in vars(input_codes).items() if name.isupper() and isinstance(value, int)}
THEIRS = {
    name: value
    for name, value in vars(evdev.ecodes).items()
    if name.startswith(FAMILIES) and isinstance(value, int) and name not in ("EV_VERSION", "EV_UINPUT")
}


def test_the_same_names_have_the_same_numbers() -> None:
    common = OURS.keys() & THEIRS.keys()
    assert len(common) > 700  # another evdev may know a few more or less names than the header we were made from
    assert {name: OURS[name] for name in common} == {name: THEIRS[name] for name in common}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_missing(family: str) -> None:
    theirs = {name for name in THEIRS if name.startswith(family) and not name.endswith(("_MAX", "_CNT"))}
    ours = {name for name in OURS if name.startswith(family)}
    assert len(theirs - ours) <= len(theirs) // 20


def test_key_name() -> None:
    assert input_codes.key_name(30) == "KEY_A"
    assert input_codes.key_name(0x110) == "BTN_MOUSE"
    assert input_codes.key_name(113) == "KEY_MUTE"
    assert input_codes.key_name(0x2FE) == "KEY_0x2fe"


def test_the_import_is_cheap(tmp_path: Path) -> None:
    code = """
import importlib, sys, time
best = 1e9
for _ in range(20):
    sys.modules.pop("pyvmm.input.codes", None)
    start = time.perf_counter()
    importlib.import_module("pyvmm.input.codes")
    best = min(best, time.perf_counter() - start)
print(best)
"""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code]
    best = float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert best < 0.002
