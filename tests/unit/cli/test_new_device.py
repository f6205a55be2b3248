"""`pyvmm new-device`: names, files, what it refuses. Whether what it writes works is in tests/kvm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cli import new_device
from pyvmm.cli.arguments import main
from pyvmm.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples"
DEVICES = sorted(p.stem for p in EXAMPLES.glob("*.py") if new_device.CLASS.search(p.read_text()))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["new-device", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_files_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-device", "fan_speed"]) == 0
    guest = {f"fan_speed_guest/{name}" for name in ("build.sh", "guest.bin", "guest.c", "guest.toml")}
    linux = {"fan_speed_linux/fan_speed.c", "fan_speed_linux/Kbuild"}
    assert set(files(tmp_path)) == {"fan_speed.py", "test_fan_speed.py"} | guest | linux
    assert (tmp_path / "fan_speed_linux" / "Kbuild").read_text() == "obj-m := fan_speed.o\n"
    driver = (tmp_path / "fan_speed_linux" / "fan_speed.c").read_text()
    assert "of fan_speed.py: echo 21 >/dev/fan_speed;" in driver and "struct fan_speed *fan_speed = data;" in driver
    assert "class FanSpeed(PciDevice):" in (tmp_path / "fan_speed.py").read_text()
    assert not any(re.search(rb"doubler|Doubler", data) for data in files(tmp_path).values())
    assert capfd.readouterr().out.splitlines() == [
        "fan_speed.py is yours; go on with",
        "    pytest test_fan_speed.py",
        "    pyvmm run ./fan_speed_guest --device fan_speed.py:FanSpeed",
        "    pyvmm run ./fan_speed_guest --device fan_speed.py:FanSpeed --trace exits,irq",
    ]


@pytest.mark.parametrize("like", DEVICES)
def test_like_an_example(like: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a folder that is made; its tests are green but for what needs KVM, and the tools find nothing."""
    folder = tmp_path / "a folder" / "of its own"
    assert main(["new-device", "mine", "--like", like, "--into", str(folder)]) == 0
    first, *steps = capfd.readouterr().out.splitlines()
    assert first == f"'{folder}/mine.py' is yours; go on with" and len(steps) == 3
    assert f"pytest '{folder}/test_mine.py'" in steps[0]
    python = [sys.executable, "-m"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "-k", "not driver"],
        ["ruff", "check", "--isolated", "--select", "E,F,W,I,B,UP,C4,SIM,RUF,PIE,RET", "--line-length", "120", "."],
        ["ruff", "format", "--isolated", "--check", "--line-length", "120", "."],
        ["mypy", "--strict", "--follow-imports", "silent", "mine.py", "test_mine.py"],
    ):
        ran = subprocess.run([*python, *command], cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_help_names_the_examples(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["new-device", "--help"])
    named = ", ".join(name for name in DEVICES if name != new_device.EXAMPLE)
    assert named in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize("there", ["led.py", "test_led.py", "led_guest/", "led.py -> nowhere"])
def test_nothing_is_overwritten(there: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, _, target = there.partition(" -> ")
    if target:
        (tmp_path / name).symlink_to(target)
    elif name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    line = refused(capfd, "led", "--into", str(tmp_path))
    assert (
        line == f"pyvmm: new-device: {tmp_path / name} is there already: take another name, or --into another folder\n"
    )
    assert files(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, "that is no name of a module") for name in ("", "Led", "a-b", "a b", "1a", "_a", "é", "a" * 31)),
        ("../led", r"that is no name of a module"),
        ("a\x1bb", r"new-device a\\x1bb: "),
        ("class", "is something else already"),
        ("none", "or its class, None, is something else"),
        ("exception", "or its class, Exception, "),
        ("pci_device", "or its class, PciDevice, "),
        ("queue", "Python knows a module of that name"),
        ("pyvmm", "Python knows a module of that name"),
        ("conftest", "pytest takes conftest.py for its own"),
        ("test_led", "pytest takes test_led.py for its own"),
    ],
)
def test_names(name: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert re.search(says, refused(capfd, "--into", str(tmp_path / "new"), "--", name))
    assert not list(tmp_path.iterdir())


@given(st.text() | st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True))
def test_any_name_is_taken_or_refused_in_a_line(name: str) -> None:
    try:
        kind = new_device._checked(name)
    except UserError as error:
        assert str(error).isprintable()
    else:
        compile(f"from {name} import {kind}\nclass {kind}: ...", "x", "exec")


def test_no_such_example(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, "led", "--like", "edo", "--into", str(tmp_path))
    assert line == "pyvmm: new-device --like edo: no such example; did you mean edu?\n"
    assert "there are: doubler, edu, " in refused(capfd, "led", "--like", "../x", "--into", str(tmp_path))


def test_a_folder_that_cannot_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capfd, "led", "--into", str(tmp_path / "file" / "x"))
    assert line == f"pyvmm: new-device: {tmp_path}/file/x: Not a directory\n"


def test_half_a_device_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where a file cannot be written, those before it and the folders that were made go again."""
    whole = Path.open

    def no_room(path: Path, mode: str) -> object:
        if path.name == "guest.c":
            raise OSError(28, "No space left on device", str(path))
        return whole(path, mode)

    monkeypatch.setattr(Path, "open", no_room)
    assert "No space left on device" in refused(capfd, "led", "--into", str(tmp_path / "x" / "y"))
    assert not list(tmp_path.iterdir())


def test_the_guest_is_what_its_source_builds(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "doubler_guest", tmp_path / "guest")
    (folder / "guest.bin").unlink()
    subprocess.run(["sh", folder / "build.sh"], check=True)
    assert (folder / "guest.bin").read_bytes() == (EXAMPLES / "doubler_guest" / "guest.bin").read_bytes()
