"""guests/: what the loader gives, and that the committed bytes are what the sources build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from pyvmm import guests
from pyvmm.guests import Guest, GuestError

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = sorted(p.parent for p in (ROOT / "guests").glob("*/guest.toml"))
NAMES = [folder.name for folder in FOLDERS]
MODES = {"real", "protected", "long"}
ENDS = {"power-off", "debug-exit", "reset", "shutdown", "internal-error", "system-event"}


def test_names_are_the_folders() -> None:
    assert guests.names() == NAMES
    assert guests.DEFAULT in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_load_gives_what_the_files_say(name: str) -> None:
    guest = guests.load(name)
    info = tomllib.loads((ROOT / "guests" / name / "guest.toml").read_text())
    symbols = info.pop("symbols", {})
    assert guest.symbols == symbols
    assert {f.name: getattr(guest, f.name) for f in fields(Guest)} == {
        **info,
        "name": name,
        "symbols": symbols,
        "image": (ROOT / "guests" / name / "guest.bin").read_bytes(),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_guest_can_be_started(name: str) -> None:
    guest = guests.load(name)
    assert guest.mode in MODES
    assert guest.end in ENDS
    assert 0 <= guest.value <= 255
    assert guest.description
    end = guest.address + len(guest.image)
    assert guest.address <= guest.entry < end <= guest.memory
    assert all(guest.address <= address < end for address in guest.symbols.values())
    if guest.mode == "real":
        assert guest.address == 0x7C00
        if len(guest.image) <= 512:
            assert guest.image[510:] == b"\x55\xaa", "a guest that fits into a boot sector is one"


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_guest_says_what_it_shows(folder: Path) -> None:
    assert (folder / "README.md").is_file() or (folder / "guest.S").read_text().startswith("/* ")
    assert folder.name in (ROOT / "guests/README.md").read_text()


def test_parameters_go_into_the_image() -> None:
    guest = guests.load("timer")
    offset = guest.symbols["count"] - guest.address
    changed = guest.with_parameters(count=0x1122334455667788)
    assert changed.image[offset : offset + 8] == bytes.fromhex("8877665544332211")
    assert changed.image[:offset] + guest.image[offset : offset + 8] + changed.image[offset + 8 :] == guest.image
    assert guests.load("timer") == guest


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(GuestError, match="timer has no counts; it has: count, ticks"):
        guests.load("timer").with_parameters(counts=1)


@pytest.mark.parametrize(
    "name", ["", "none", "../guests/timer", "timer/", "include", "/etc", "a\0b", "__pycache__", "."]
)
def test_an_unknown_guest_is_one_line(name: str) -> None:
    with pytest.raises(GuestError) as error:
        guests.load(name)
    assert "hello" in str(error.value)
    assert "\n" not in str(error.value)


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts/build-guests"), "--check"]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_sources_build_the_committed_bytes() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_sees_a_difference_and_builds_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    for folder in ("guests/include", "guests/timer", "guests/hlt"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/build-guests", tmp_path / "scripts")
    assert check(tmp_path).returncode == 0
    image = tmp_path / "guests/timer/guest.bin"
    image.write_bytes(image.read_bytes()[:-1] + b"\0")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "guests/timer/guest.bin" in done.stdout
    assert "hlt" not in done.stdout
    assert image.read_bytes()[-1] == 0, "--check writes nothing"
