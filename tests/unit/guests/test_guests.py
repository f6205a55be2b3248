"""guests/: what the loader gives, and that the committed bytes are what the sources build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import guests
from pyvmm.cli.arguments import main
from pyvmm.errors import UserError
from pyvmm.guests import Guest, GuestError

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = sorted(p.parent for p in (ROOT / "guests").glob("*/guest.toml"))
NAMES = [folder.name for folder in FOLDERS]


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
        "needs": "",
        "tables": "",
        **info,
        "name": name,
        "symbols": symbols,
        "image": (ROOT / "guests" / name / "guest.bin").read_bytes(),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_guest_can_be_started(name: str) -> None:
    guest = guests.load(name)
    assert guest.mode in guests.MODES
    assert guest.end in guests.ENDS
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
    assert ("that folder has no guest.toml" if "/" in name else "hello") in str(error.value)
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


TOML = b"""description = "x"
mode = "real"
address = 0x7C00
entry = 0x7C00
memory = 0x100000
end = "debug-exit"
value = 0

[symbols]
count = 0x7C08
later = 0x8000
"""


def put(folder: Path, toml: bytes | None, image: bytes | None = bytes(16)) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in (("guest.toml", toml), ("guest.bin", image)):
        if data is not None:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        *((f"{key} = ".encode(), b"other = ", f"there is no {key}$") for key in
          ("description", "mode", "address", "entry", "memory", "end", "value")),
        (b'"real"', b'"virtual"', "mode 'virtual' is none of real, protected, long$"),
        (b'"real"', b"7", "mode is 7, no str$"),
        (b'"debug-exit"', b'"never"', "end 'never' is none of power-off, "),
        (b"value = 0", b'value = "0"', "value is '0', no int$"),
        (b"value = 0", b"value = zero", "line 7: 'zero' is no number$"),
        (b"0x7C08", b'"0x7C08"', "line 10: '\"0x7C08\"' is no number$"),
        (b"address = 0x7C00", b"address = -1", "16 bytes at -0x1 are not in 0x100000 bytes"),
        (b"address = 0x7C00", b"address = 0xFFFF8", "16 bytes at 0xffff8 are not in 0x100000 bytes"),
        (b"0x100000", b"0x100001", "not in 0x100001 bytes of memory, whole pages"),
        (b"entry = 0x7C00", b"entry = 0x7C10", "entry 0x7c10 is not in the image"),
        (b'"x"', b'"\xff"', "'utf-8' codec can't decode byte 0xff"),
    ],
)  # fmt: skip
def test_a_folder_that_is_wrong(
    old: bytes,
    new: bytes,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(guests, "_data", lambda name, file: (tmp_path / name / file).read_bytes())
    monkeypatch.setattr(guests, "names", lambda: ["good", "wrong", "later"])
    put(tmp_path / "good", TOML)
    put(tmp_path / "wrong", TOML.replace(old, new))
    put(tmp_path / "later", TOML.replace(b'"x"', b'"y"'))
    with pytest.raises(GuestError, match=f"^guest wrong: guest.toml: .*{says}"):
        guests.load("wrong")
    assert main(["guests"]) == 2
    out, err = capfd.readouterr()
    assert out.splitlines() == ["good               x", "later              y"], "the list goes on"
    assert err.startswith("pyvmm: guest wrong: guest.toml: ") and err.count("\n") == 1


def test_a_folder_without_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_data", lambda name, file: TOML if file == "guest.toml" else None)
    with pytest.raises(GuestError, match=r"^guest x has no guest.bin: scripts/build-guests makes it$"):
        guests.load("x")


def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path; a name alone is one that comes with pyvmm."""
    shutil.copytree(Path(guests.__file__).parent / "hello", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for path in ("./mine", f"{tmp_path}/mine"):
        assert guests.load(path).image == guests.load("hello").image
    with pytest.raises(UserError, match=r"there is no guest 'mine'; there are: "):
        guests.load("mine")
    with pytest.raises(UserError, match=r"there is no guest '../x': that folder has no guest.toml"):
        guests.load("../x")
    with pytest.raises(UserError, match=r"there is no guest 'helo'; did you mean hello\?"):
        guests.load("helo")


def test_a_parameter_outside_the_image() -> None:
    guest = guests.parse("x", TOML, bytes(16))
    assert guest.with_parameters(count=7).image[8:] == (7).to_bytes(8, "little")
    with pytest.raises(GuestError, match="later is not in the image"):
        guest.with_parameters(later=7)


@given(st.binary(max_size=200), st.integers(0, len(TOML)), st.integers(0, 20), st.integers(0, 40))
def test_any_bytes_are_a_guest_or_one_line(junk: bytes, at: int, cut: int, size: int) -> None:
    for text in (junk, TOML[:at] + junk[:20] + TOML[at + cut :]):
        try:
            guest = guests.parse("x", text, bytes(size))
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert guest.mode in guests.MODES and 0 <= guest.address <= guest.entry < guest.memory
