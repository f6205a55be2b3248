"""--device: what is wrong with a user's file is one line, whatever the file does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.machine.registry import device_port, load_device, parse_device

FILE = """
from pyvmm.pci.device import PciDevice

class Good(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000

    def __init__(self, number: int = 0, text: str = "") -> None:
        super().__init__()
        self.number, self.text = number, text

class NoDevice:
    pass

class Raises(PciDevice):
    def __init__(self) -> None:
        raise ZeroDivisionError("a\\nbug")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_arguments() -> None:
    assert parse_device("a/b.py:Good,number=0x10,text=x=y,port=1") == (
        Path("a/b.py"),
        "Good",
        {"number": 16, "text": "x=y", "port": 1},
    )
    assert device_port("a.py:Good,port=0x2") == 2
    assert device_port("a.py:Good") is None


def test_a_device(file: Path) -> None:
    device = load_device(f"{file}:Good,number=0x10,text=here,port=3")
    assert (device.number, device.text) == (16, "here")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("{file}", "write it as FILE.py:CLASS"),
        ("{file}:", "write it as FILE.py:CLASS"),
        (":Good", "write it as FILE.py:CLASS"),
        ("{file}:Good,number", "'number' is no KEY=VALUE"),
        ("{file}:Good,1=2", "'1=2' is no KEY=VALUE"),
        ("{file}:Good,colour=red", "TypeError: .* unexpected keyword argument 'colour'"),
        ("{file}:Nobody", "has no attribute 'Nobody'"),
        ("{file}:NoDevice", "NoDevice is no pyvmm.pci.device.PciDevice"),
        ("{file}:Raises", "ZeroDivisionError: a bug"),
        ("{folder}:Good", "is no Python file"),
        ("{folder}/none.py:Good", "is no Python file"),
    ],
)
def test_mistakes(file: Path, option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_device(option.format(file=file, folder=file.parent))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_python(file: Path) -> None:
    file.write_text("this is no Python\n")
    with pytest.raises(UserError, match="SyntaxError") as caught:
        load_device(f"{file}:Good")
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_the_process(file: Path) -> None:
    file.write_text("import sys\nsys.exit(9)\n")
    with pytest.raises(UserError, match="SystemExit: 9"):
        load_device(f"{file}:Good")


def test_a_port_that_is_no_number() -> None:
    with pytest.raises(UserError, match="port=first is no number of a root port"):
        device_port("a.py:Good,port=first")
