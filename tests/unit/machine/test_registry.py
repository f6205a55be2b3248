"""--device: what is wrong with a user's file is one line, whatever the file does."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.board.dimm import Dimm
from pyvmm.clock import FakeClock
from pyvmm.config import MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError
from pyvmm.machine.describe import described
from pyvmm.machine.registry import BUILTIN, find, help_text, keys, names
from pyvmm.pci.ata_disk import AtaDisk
from pyvmm.pci.device import PciDevice
from pyvmm.pci.root_port import RootPort
from pyvmm.trace import OFF
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng
from tests.rig.devices import made

FILE = """from __future__ import annotations
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from pyvmm.pci.device import PciDevice
from pyvmm.virtio.device import VirtioDevice

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

class Needs(PciDevice):
    "Wants much."
    vendor_id = 1

    def __init__(
        self, size: int, clock: Clock, *, kind: Literal["a", "b"] = "b", flag: bool = False, where: Path | None = None,
        ratio: float = 0.5, other: bytes = b"", anything=3, trace: Channel | None = None,
        call: Callable[[], None] = print,
    ) -> None:
        super().__init__()
        self.got = size, clock, kind, flag, where, ratio, other, anything, trace

class Wired(PciDevice):
    def __init__(self, other: bytes) -> None: ...

class Virtio(VirtioDevice):
    device_id = 4
    queue_sizes = (8,)
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


def test_a_spec() -> None:
    spec = DeviceSpec.parse("a/b.py:Good,number=0x10,text=x=y,on,port=1,id=mine,slot=0x1f")
    assert spec == DeviceSpec(
        "a/b.py:Good", (("number", "0x10"), ("text", "x=y"), ("on", True)), id="mine", port=1, slot=31
    )
    assert (spec.file, spec.kind) == (Path("a/b.py"), "Good")
    assert DeviceSpec.parse(str(spec)) == spec
    named = DeviceSpec.parse("pci-testdev,membar=0x1000")
    assert (named.file, named.kind, named.port) == (None, "pci-testdev", None)


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_one_line(text: str) -> None:
    try:
        spec = DeviceSpec.parse(text)
    except UserError as error:
        assert str(error).startswith("device ")
    else:
        assert DeviceSpec.parse(str(spec)) == spec


def test_a_device(file: Path) -> None:
    device = made(f"{file}:Good,number=0x10,text=here,port=3")
    assert (device.number, device.text) == (16, "here")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "nothing",
            "write it as FILE.py:CLASS, or name one that there is: there are: ata-disk, floppy, memory, ne2k, ",
        ),
        ("virtio-rgn", "did you mean virtio-rng?"),
        ("{file}", "write it as FILE.py:CLASS"),
        ("{file}:", "write it as NAME or FILE.py:CLASS"),
        (":Good", "write it as NAME or FILE.py:CLASS"),
        ("", "write it as NAME or FILE.py:CLASS"),
        ("{file}:Good,number", "'number' is no number: it must be KEY=VALUE: write INT behind it"),
        ("{file}:Good,number=many", "'number=many' is no number: it must be an int"),
        ("{file}:Good,number=1,number=2", "number is there twice"),
        ("{file}:Good,1=2", "'1=2' is no KEY=VALUE"),
        ("{file}:Good,id", "id= is a name of your own"),
        ("{file}:Good,slot=first", "slot=first is no number of a slot of PCI bus 0, 0 to 0x1f"),
        ("{file}:Good,port", "port=True is no number of a root port"),
        ("{file}:Good,colour=red", "Good has no key colour: it has number, text$"),
        ("{file}:Needs", "Needs needs size=: say size=INT$"),
        ("{file}:Wired", "no text is a BYTES, which other is: make it in Python$"),
        ("{file}:Needs,size=1,kind=c", "'kind=c' is no kind: it must be one of a, b"),
        ("{file}:Needs,size=1,flag=yes", "'flag=yes' is no flag: it must be on or off"),
        ("{file}:Needs,size=1,ratio=x", "'ratio=x' is no ratio: it must be a number"),
        ("{file}:Nobody", "mine.py has no class Nobody; there are: Good, Raises, Needs, Wired, Virtio$"),
        (
            "{file}:NoDevice",
            "NoDevice is no PciDevice and no VirtioDevice; there are: Good, Raises, Needs, Wired, Virtio$",
        ),
        ("{file}:Raises", r"ZeroDivisionError: a bug \(mine.py:20\)$"),
        ("{folder}:Good", "is no Python file"),
        ("{folder}/none.py:Good", "is no Python file"),
    ],
)
def test_mistakes(file: Path, option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        made(option.format(file=file, folder=file.parent))
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
        (
            "class Good: pass\n",
            r"Good is no PciDevice and no VirtioDevice; no class in it is derived from PciDevice or ",
        ),
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
        made(f"{file}:Good")
    assert str(caught.value).isprintable()


def test_a_keyboard_interrupt_of_the_files_own(file: Path) -> None:
    file.write_text("raise KeyboardInterrupt\n")
    old = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with pytest.raises(UserError, match=r"KeyboardInterrupt \(mine.py:1\)$"):
            made(f"{file}:Good")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):  # as far as one can tell it is the user's
            made(f"{file}:Good")
    finally:
        signal.signal(signal.SIGINT, old)


def test_no_descriptor_is_no_fault_of_the_file(file: Path) -> None:
    file.write_text("raise OSError(24, 'Too many open files')\n")
    with pytest.raises(OSError, match="Too many open files"):
        made(f"{file}:Good")


def test_the_same_file_is_one_module(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(file)
    one = made(f"{file}:Good")
    same = made(f"{os.path.relpath(file)}:Good")
    linked = made(f"{tmp_path}/link.py:Good")
    assert type(one) is type(same) is type(linked)


def test_a_file_that_failed_is_read_again(file: Path) -> None:
    text = file.read_text()
    file.write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        made(f"{file}:Good")
    file.write_text(text)
    assert type(made(f"{file}:Good")).__name__ == "Good"


def test_two_files_of_one_name(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(FILE.replace("0x5678", "0x9ABC"))
    assert made(f"{file}:Good").device_id == 0x5678
    assert made(f"{other}:Good").device_id == 0x9ABC
    assert made(f"{file}:Good").device_id == 0x5678


def test_files_that_import_each_other(tmp_path: Path) -> None:
    """What lies in the folder can be imported, at once and later, and is the same module as --device has."""
    for name, other in (("left", "right"), ("right", "left")):
        (tmp_path / f"{name}.py").write_text(
            f"from pyvmm import PciDevice\n\nclass Device(PciDevice):\n    vendor_id = 1\n"
            f"    def other(self):\n        import {other}\n        return {other}.Device\n"
        )
    left, right = (made(f"{tmp_path / name}.py:Device") for name in ("left", "right"))
    assert left.other() is type(right) and right.other() is type(left)


def test_a_file_named_as_one_of_the_standard_library(tmp_path: Path) -> None:
    """It is a device all the same, and nobody else gets it in place of the library's."""
    for name in ("signal", "colorsys", "__main__", "no-name"):
        path = tmp_path / f"{name}.py"
        path.write_text(FILE)
        assert made(f"{path}:Good").device_id == 0x5678
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)


NEEDS = {
    "ata-disk": ("path",),
    "floppy": ("path",),
    "memory": ("size",),
    "ne2k": ("to",),
    "vhost-vsock": ("cid",),
    "virtio-blk": ("path",),
    "virtio-net": ("to",),
}
"""The keys that a device cannot do without."""


@pytest.mark.parametrize("name", sorted(BUILTIN.keys() - {"vfio", "vhost-vsock"}))
def test_what_comes_with_pyvmm_can_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "path").write_bytes(bytes(512))
    written = {key: tmp_path / key for key in NEEDS.get(name, ())} | ({"size": "128M"} if name == "memory" else {})
    device = made("".join([name, *(f",{key}={value}" for key, value in written.items())]))
    assert isinstance(device, (PciDevice, AtaDisk, Dimm)) or device.ports or device.memory
    if isinstance(device, (PciDevice, AtaDisk)):
        device.close()


def test_vfio_needs_a_device_of_the_host() -> None:
    with pytest.raises(UserError, match="device vfio: vfio needs host=: say host=STR"):
        made("vfio")


def test_services_are_given_and_values_read(file: Path) -> None:
    """By the type of a parameter, imported or not."""
    device = made(f"{file}:Needs,size=0x10,kind=a,flag,where=/tmp/x,ratio=2,anything=0x7")
    size, clock, kind, flag, where, ratio, other, anything, trace = device.got
    assert (size, kind, flag, where, ratio, other, anything) == (16, "a", True, Path("/tmp/x"), 2.0, b"", 7)
    assert isinstance(clock, FakeClock) and trace is OFF
    assert made(f"{file}:Needs,size=1,flag=off,anything=text").got[-2] == "text"


def test_a_virtio_device_needs_no_wrapper(file: Path) -> None:
    device = made(f"{file}:Virtio")
    assert isinstance(device, VirtioPci) and type(device.device).__name__ == "Virtio"


def test_help(file: Path) -> None:
    assert list(help_text(DeviceSpec(f"{file}:Needs"))) == [
        f"{file}:Needs: Wants much.",
        "",
        "  size=INT",
        "  kind=a|b   default b",
        "  flag=on|off   default off",
        "  where=PATH   default None",
        "  ratio=FLOAT   default 0.5",
        "  anything=VALUE   default 3",
        "  id=NAME",
        "  port=N, behind root port N",
        "  slot=N, of PCI bus 0",
        "  (clock, trace are given)",
    ]


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_help_names_the_places_that_a_device_takes(name: str) -> None:
    """And no others: a machine refuses those."""
    lines = list(help_text(DeviceSpec(name)))
    on_a_bus = name not in ("memory", "ata-disk", "testdev")
    assert ("  slot=N, of PCI bus 0" in lines) is on_a_bus
    assert ("  port=N, behind root port N" in lines) is (on_a_bus and name != "root-port")
    assert ("  slot=N, of the slots for memory" in lines) is (name == "memory")
    assert "  id=NAME" in lines


@pytest.mark.parametrize("name", sorted(BUILTIN.keys() - {"vfio"}))
def test_help_of_what_comes_with_pyvmm(name: str) -> None:
    assert len(list(help_text(DeviceSpec(name)))) > 3
    told, _ = keys(find(DeviceSpec(name)))
    needed = tuple(key.name for key in told if key.default is inspect.Parameter.empty)
    assert needed == NEEDS.get(name, ()), "else its name alone is enough"


def test_an_installed_package_has_devices(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """By the entry points of its distribution."""
    package = file.parent / "theirs-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: theirs\nVersion: 1\n")
    points = "[pyvmm.devices]\nmy-device = mine:Good\nbroken = mine:Nobody\nwrong = mine:NoDevice\n"
    (package / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(file.parent))
    assert {"my-device", *BUILTIN} <= set(names())
    assert made("my-device,number=5").number == 5
    for name, says in {"broken": "its package names mine:Nobody, which there is not", "wrong": "is neither"}.items():
        with pytest.raises(UserError, match=says):
            made(name)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("pci-testdev,size=1", "pci-testdev has no key size: it has membar"),
        ("pci-testdev,membar=64M", "'membar=64M' is no membar: it must be an int"),
        ("pci-testdev,membar=48", "a power of two, not 48"),
        ("testdev,lines=1", "testdev has no key lines: it has none"),
    ],
)
def test_wrong_keys(option: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        made(option)
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
        (("testdev,port=0",), "no PCI device: leave port and slot away"),
        (
            ("pci-testdev,port=1",),
            r"no root port 1 \(there are 1, from 0 up\): say how many root_ports, or leave port away",
        ),
    ],
)
def test_a_device_by_name_that_does_not_go(devices: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says), described(MachineConfig(devices=devices, root_ports=1)):
        pass


def test_a_device_by_name_behind_a_root_port() -> None:
    with described(MachineConfig(devices=("pci-testdev,port=0",), root_ports=1)) as board:
        (port,) = [function for function in board.pci.root.functions.values() if isinstance(function, RootPort)]
        assert [type(function).__name__ for function in port.child.functions.values()] == ["PciTestdev"]


def test_where_devices_go(file: Path) -> None:
    """By id, slot and port, and one that was made in Python; root ports and the entropy source by either name."""
    theirs = made(f"{file}:Good,number=7")
    devices = (f"{file}:Good,id=mine,slot=9", "virtio-rng,port=0", "root-port", f"{file}:Good", theirs, "virtio-tablet")
    with described(MachineConfig(devices=devices, root_ports=1, rng=True)) as board:
        root = board.pci.root
        named = {name: type(device).__name__ for name, device in board.devices.items()}
        assert named == {
            "root-port": "RootPort",
            "root-port-2": "RootPort",
            "mine": "Good",
            "virtio-rng": "VirtioRng",
            "Good": "Good",
            "Good-2": "Good",
            "virtio-tablet": "VirtioTablet",
            "virtio-rng-2": "VirtioRng",
        }
        assert board.devices["Good-2"] is theirs
        assert root.functions[9 << 3] is board.devices["mine"]
        port = root.functions[0x1C << 3]
        assert isinstance(port, RootPort) and port is board.devices["root-port"]
        assert isinstance(behind := port.child.functions[0], VirtioPci) and behind.device is board.devices["virtio-rng"]


TWICE = VirtioRng()


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (("virtio-rng,id=a", "virtio-rng,id=a"), "there is a device a already: give it another id"),
        (("virtio-rng,slot=32",), "no PCI place 20.0"),
        (("virtio-rng,slot=0",), "slot 0 is taken by HostBridge: leave slot away"),
        (("virtio-rng,slot=3", "virtio-rng,slot=3,id=a"), "slot 3 is taken by virtio-rng: leave slot away"),
        (("root-port", "virtio-rng,port=0", "virtio-rng,port=0"), "root port 0 is taken by virtio-rng: leave port"),
        (("virtio-rng,port=0",), r"no root port 0 \(there are none\): say how many root_ports"),
        ((TWICE, TWICE), "it is in the machine already, as VirtioRng: make another"),
        (("root-port,port_number=3",), "root-port has no key port_number: it has none"),
        (("root-port",) * 5, "there are at most 4 root ports"),
        (("root-port,port=0",), "a root port is on bus 0: leave port away"),
    ],
)
def test_where_they_do_not_go(devices: tuple[object, ...], says: str) -> None:
    with pytest.raises(UserError, match=says), described(MachineConfig(devices=devices)):
        pass


@pytest.mark.parametrize("device", [1, PciDevice, b"virtio-rng", None])
def test_what_is_no_device(device: object) -> None:
    with pytest.raises(UserError, match="a DeviceSpec or a device"):
        MachineConfig(devices=(device,)).complete()
