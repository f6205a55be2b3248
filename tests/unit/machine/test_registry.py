"""--device: what is wrong with a user's file is one line, whatever the file does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.irq import FakeIrq
from pyvmm.machine.describe import described
from pyvmm.machine.registry import BUILTIN, Services, device_port, load_device, make_device, parse_device
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort

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


@pytest.fixture(autouse=True)
def nothing_stays_imported() -> Iterator[None]:
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "pytest-of" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


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
    assert parse_device("pci-testdev,membar=0x1000") == (None, "pci-testdev", {"membar": 0x1000})


def test_a_device(file: Path) -> None:
    device = load_device(f"{file}:Good,number=0x10,text=here,port=3")
    assert (device.number, device.text) == (16, "here")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("nothing", "write it as FILE.py:CLASS .* or name one of pci-testdev, testdev"),
        ("{file}", "write it as FILE.py:CLASS"),
        ("{file}:", "write it as FILE.py:CLASS"),
        (":Good", "write it as FILE.py:CLASS"),
        ("{file}:Good,number", "'number' is no KEY=VALUE"),
        ("{file}:Good,1=2", "'1=2' is no KEY=VALUE"),
        ("{file}:Good,colour=red", "TypeError: .* unexpected keyword argument 'colour'"),
        ("{file}:Nobody", "mine.py has no class Nobody; there are: Good, Raises$"),
        ("{file}:NoDevice", "NoDevice is no pyvmm.pci.device.PciDevice; there are: Good, Raises$"),
        ("{file}:Raises", r"ZeroDivisionError: a bug \(mine.py:16\)$"),
        ("{folder}:Good", "is no Python file"),
        ("{folder}/none.py:Good", "is no Python file"),
    ],
)
def test_mistakes(file: Path, option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_device(option.format(file=file, folder=file.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("this is no Python\n", r"SyntaxError: invalid syntax \(mine.py:1\)$"),
        ("\n\nx = nowhere\n", r"NameError: name 'nowhere' is not defined \(mine.py:3\)$"),
        ("import sys\nsys.exit(9)\n", r"SystemExit: 9 \(mine.py:2\)$"),
        ("import helper\n", r"ZeroDivisionError: division by zero \(helper.py:2\)$"),
        ("import broken\n", r"SyntaxError: '\(' was never closed \(broken.py:2\)$"),
        ("import nobody_has_this\n", r"ModuleNotFoundError: No module named 'nobody_has_this' \(mine.py:1\)$"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .* \(mine.py:2\)$"),
        ("class Good: pass\n", r"Good is no .*PciDevice; no class in it is derived from PciDevice$"),
        ("from pyvmm import UserError\nraise UserError('no firmware')\n", r"mine.py:Good: no firmware$"),
        ("raise ValueError('\\x1b[2J\\n' + 1000 * 'x')\n", r"ValueError: \\x1b\[2J x{190,200}… \(mine.py:1\)$"),
        ("\0", r"source code (string )?cannot contain null bytes"),
        (
            "from pyvmm import PciDevice\nclass Good(PciDevice):\n    def __init__(self): self.number = 1\n",
            r"mine.py: Good: super\(\).__init__\(\) was not called\?$",
        ),
        (
            "from pyvmm import PciDevice\nclass Good(PciDevice):\n"
            "    def __init__(self):\n        self.add_io_bar(0, 8, self)\n",
            r"'Good' object has no attribute 'bars': super\(\).__init__\(\) was not called\? \(mine.py:4\)$",
        ),
        (
            "from pyvmm.virtio.pci import VirtioPci\nfrom pyvmm import VirtioDevice\nclass Four(VirtioDevice):\n"
            "    device_id = 4\n    def __init__(self): pass\n"
            "class Good(VirtioPci):\n    def __init__(self):\n        super().__init__(Four())\n",
            r"'Four' object has no attribute 'queues': super\(\).__init__\(\) was not called\? \(mine.py:8\)$",
        ),
        (
            "from pyvmm import PciDevice\nclass Good(PciDevice):\n"
            "    def __init__(self):\n        super().__init__()\n        self.nothing\n",
            r"AttributeError: 'Good' object has no attribute 'nothing' \(mine.py:5\)$",
        ),
    ],
)
def test_a_file_that_fails(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    (file.parent / "helper.py").write_text("\n1 / 0\n")
    (file.parent / "broken.py").write_text("\n(\n")
    with pytest.raises(UserError, match=says) as caught:
        load_device(f"{file}:Good")
    assert str(caught.value).isprintable()


def test_a_keyboard_interrupt_of_the_files_own(file: Path) -> None:
    file.write_text("raise KeyboardInterrupt\n")
    old = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with pytest.raises(UserError, match=r"KeyboardInterrupt \(mine.py:1\)$"):
            load_device(f"{file}:Good")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):  # as far as one can tell it is the user's
            load_device(f"{file}:Good")
    finally:
        signal.signal(signal.SIGINT, old)


def test_no_descriptor_is_no_fault_of_the_file(file: Path) -> None:
    file.write_text("raise OSError(24, 'Too many open files')\n")
    with pytest.raises(OSError, match="Too many open files"):
        load_device(f"{file}:Good")


def test_the_same_file_is_one_module(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(file)
    one = load_device(f"{file}:Good")
    same = load_device(f"{os.path.relpath(file)}:Good")
    linked = load_device(f"{tmp_path}/link.py:Good")
    assert type(one) is type(same) is type(linked)


def test_a_file_that_failed_is_read_again(file: Path) -> None:
    text = file.read_text()
    file.write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_device(f"{file}:Good")
    file.write_text(text)
    assert type(load_device(f"{file}:Good")).__name__ == "Good"


def test_two_files_of_one_name(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(FILE.replace("0x5678", "0x9ABC"))
    assert load_device(f"{file}:Good").device_id == 0x5678
    assert load_device(f"{other}:Good").device_id == 0x9ABC
    assert load_device(f"{file}:Good").device_id == 0x5678


def test_files_that_import_each_other(tmp_path: Path) -> None:
    """What lies in the folder can be imported, at once and later, and is the same module as --device has."""
    for name, other in (("left", "right"), ("right", "left")):
        (tmp_path / f"{name}.py").write_text(
            f"from pyvmm import PciDevice\n\nclass Device(PciDevice):\n    vendor_id = 1\n"
            f"    def other(self):\n        import {other}\n        return {other}.Device\n"
        )
    left, right = (load_device(f"{tmp_path / name}.py:Device") for name in ("left", "right"))
    assert left.other() is type(right) and right.other() is type(left)  # type: ignore[attr-defined]


def test_a_file_named_as_one_of_the_standard_library(tmp_path: Path) -> None:
    """It is a device all the same, and nobody else gets it in place of the library's."""
    for name in ("signal", "colorsys", "__main__", "no-name"):
        path = tmp_path / f"{name}.py"
        path.write_text(FILE)
        assert load_device(f"{path}:Good").device_id == 0x5678
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_a_port_that_is_no_number() -> None:
    with pytest.raises(UserError, match="port=first is no number of a root port"):
        device_port("a.py:Good,port=first")


def services() -> Services:
    return {"lines": lambda: [FakeIrq() for _ in range(16)], "flush_page": lambda: lambda gpa: None}


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_what_comes_with_pyvmm_can_be_made(name: str) -> None:
    device = make_device(name, services())
    assert isinstance(device, PciDevice) or device.ports or device.memory


def test_a_file_of_the_users_can_be_made_too(file: Path) -> None:
    assert type(make_device(f"{file}:Good", services())).__name__ == "Good"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("pci-testdev,size=1", "pci-testdev has no key size: it has membar"),
        ("pci-testdev,membar=64M", "pci-testdev,membar=64M: membar is a number of bytes"),
        ("pci-testdev,membar=48", "a power of two, not 48"),
        ("testdev,lines=1", "testdev has no key lines: it has none"),
    ],
)
def test_wrong_keys(option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        make_device(option, services())
    assert "\n" not in str(caught.value)


def test_a_device_of_the_board_is_put_where_it_says() -> None:
    """The debug console gives its port away, as in QEMU."""
    with described(MachineConfig(guest="hello", devices=("testdev",))) as board:
        board.pio.write(0xE8, 4, 0x12345678)
        assert board.pio.read(0xE0, 4) == 0x12345678
        board.mmio.write(0xFF00FFFE, 2, 0x55AA)
        board.pio.write(0x200E, 1, 1)
        assert board.parts["testdev"].ports == ((0xE0, 4), (0xE4, 4), (0xE8, 4), (0x2000, 24))
        assert board.parts["debugcon"].ports == ()
        board.reset()
        assert (board.pio.read(0xE0, 4), board.mmio.read(0xFF00FFFE, 2)) == (0, 0x55AA)


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (("testdev", "testdev"), "there are two parts testdev on the board: leave it away"),
        (("testdev,port=0",), "no PCI device: leave port away"),
        (("pci-testdev,port=1",), "root port 1 does not exist"),
    ],
)
def test_a_device_by_name_that_does_not_go(devices: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says), described(MachineConfig(devices=devices, root_ports=1)):
        pass


def test_a_device_by_name_behind_a_root_port() -> None:
    with described(MachineConfig(devices=("pci-testdev,port=0",), root_ports=1)) as board:
        (port,) = [function for function in board.pci.root.functions.values() if isinstance(function, RootPort)]
        assert [type(function).__name__ for function in port.child.functions.values()] == ["PciTestdev"]
