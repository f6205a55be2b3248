"""A device of the user's own is loaded anew while the guest runs on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.pci.regs import PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY
from tests.rig.board import Board, board
from tests.rig.console import Console

PYVMM = Path(sys.executable).with_name("pyvmm")
COUNTER = """\
from pyvmm.pci.device import PciDevice

class Counter(PciDevice):
    vendor_id, device_id = 0x1234, 5
    STATE = ("total",)

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.total, self.step = 0, step
        self.add_memory_bar(0, 0x1000, self)

    def read(self, offset: int, size: int) -> int:
        return self.total

    def write(self, offset: int, size: int, value: int) -> None:
        self.total += value * self.step
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return path


def enable(machine: Board) -> int:
    """Where BAR 0 is, as a driver would find it."""

    def do() -> int:
        device = next(f for f in machine.board.pci.all_functions() if f.device_id == 5)
        device.config_write(PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
        return device.bars[0].address(device.config)

    return machine.call(do)


def write(machine: Board, address: int, value: int) -> int:
    machine.call(lambda: machine.board.mmio.write(address, 4, value))
    return machine.call(lambda: machine.board.mmio.read(address, 4))


def test_the_file_is_loaded_anew(file: Path) -> None:
    with board("hello", devices=(f"{file}:Counter,step=2,id=c",)) as machine:
        machine.start()
        address = enable(machine)
        snapshot = machine.snapshot()
        assert write(machine, address, 10) == 20
        stamp = file.stat()
        file.write_text(COUNTER.replace("return self.total", "return -self.total"))
        file.write_text(COUNTER.replace("self.total += ", "self.total -= "))
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # within the same second, and as long
        assert machine.replace("c") == []
        assert machine.state == "running"
        assert write(machine, address, 3) == 14
        machine.restore(snapshot)  # of the older code
        assert write(machine, address, 3) == 0xFFFFFFFA
        assert machine.board.devices["c"].step == 2, "made of the same words"  # type: ignore[attr-defined]
        assert type(machine.board.devices["c"]) is sys.modules["counter"].Counter
        again = machine.snapshot()
        write(machine, address, 1)
        machine.restore(again)
        assert write(machine, address, 0) == 0xFFFFFFFA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("0x1000, self", "0x2000, self"),
            "device c: it stays what it was, for its driver would find another: BAR 0 is ",
        ),
        (("self.total, self.step", "self.total self.step"), r"device c: SyntaxError: .* \(counter.py:9\)"),
        (("super().__init__()", "1 / 0"), r"device .*: ZeroDivisionError: .* \(counter.py:8\)"),
        (("class Counter", "class Other"), "device .*: counter.py has no class Counter"),
        (("self.total, self.step =", "self.add_msix(9999, 1) ="), "device .*"),
        (('("total",)', '("none",)'), "device c: .*STATE of Counter names none"),
    ],
)
def test_what_cannot_take_its_place(file: Path, change: tuple[str, str], message: str) -> None:
    with board("hello", devices=(f"{file}:Counter,id=c",)) as machine:
        machine.start()
        address = enable(machine)
        assert write(machine, address, 10) == 10
        file.write_text(COUNTER.replace(*change))
        with pytest.raises(UserError, match=f"^{message}"):
            machine.replace("c")
        assert write(machine, address, 1) == 11 and machine.outcome is None
        file.write_text(COUNTER.replace("return self.total", "return self.total + 100"))
        assert machine.replace("c") == []
        assert write(machine, address, 1) == 112


def test_who_has_no_other(file: Path) -> None:
    with board(
        "hello",
        devices=(
            f"{file}:Counter,id=c",
            "virtio-rng",
            "virtio-keyboard",
        ),
        root_ports=1,
    ) as machine:
        with pytest.raises(UserError, match="no device d: there are: c, root-port, virtio-keyboard, virtio-rng"):
            machine.replace("d")
        with pytest.raises(UserError, match="device root-port cannot be replaced"):
            machine.replace("root-port", type(machine.board.devices["root-port"])())
        for theirs in ("c", "virtio-rng"):
            with pytest.raises(UserError, match=f"is in the machine already, as {theirs}: make another"):
                machine.replace("virtio-rng", machine.board.devices[theirs])
        with pytest.raises(UserError, match="device virtio-rng has no file of its own: give the new one"):
            machine.replace("virtio-rng")
        with pytest.raises(UserError, match="device virtio-keyboard cannot be replaced"):
            machine.replace("virtio-keyboard", type(machine.board.devices["virtio-keyboard"])())
        with pytest.raises(UserError, match="device c is a PCI function: the new one must be one"):
            machine.replace("c", object())
        rng = machine.board.devices["virtio-rng"]
        assert machine.replace("virtio-rng", type(rng)()) == []
        assert machine.board.devices["virtio-rng"] is not rng


def test_ctrl_a_l(file: Path) -> None:
    with Console([PYVMM, "run", "hello", "--device", f"{file}:Counter,id=c"], on_pty=True) as console:
        console.expect("powers off.")
        console.send("\x01l")
        console.expect("pyvmm: c is loaded anew")
        file.write_text(COUNTER.replace('("total",)', '("total", "step")').replace("0x1000, self", "0x800, self"))
        console.send("\x01l")
        console.expect("pyvmm: device c: it stays what it was, for its driver would find another: BAR 0 is 0x800 bytes")
        file.write_text(COUNTER.replace('("total",)', '("total", "step")'))
        console.send("\x01l")
        console.expect("pyvmm: c is loaded anew, all but step as it was")
        console.send("\x01x")


def test_ctrl_a_l_where_there_is_none() -> None:
    with Console([PYVMM, "run", "hello"], on_pty=True) as console:
        console.expect("powers off.")
        console.send("\x01l")
        console.expect("pyvmm: there is no device of a file of yours: --device FILE.py:CLASS plugs one in")
        console.send("\x01x")
