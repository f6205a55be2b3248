"""The BIOS's bytes follow from its source."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from pyvmm import firmware

ROOT = Path(__file__).resolve().parents[3]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts/build-firmware"), "--check"]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_bytes_are_those_of_the_source() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_source_is_seen(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/build-firmware", tmp_path / "scripts")
    shutil.copytree(ROOT / "firmware/bios", tmp_path / "firmware/bios")
    source = tmp_path / "firmware/bios/boot.c"
    source.write_text(source.read_text().replace("No boot disk", "No boot disc"))
    assert check(tmp_path).returncode == 1
    source.write_text("nonsense")
    done = check(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("build-firmware: gcc failed\nboot.c:1")


def test_it_begins_with_a_far_jump_at_the_reset_vector() -> None:
    image = firmware.load("bios")
    assert len(image) % 4096 == 0
    assert image[-16] == 0xEA and image[-13:-11] == b"\x00\xf0"
    assert image[-2] == 0xFC, "an AT"
