"""The state of a whole board, on a VM that runs nothing: every part by name, as plain data, into another board."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyvmm import state
from pyvmm.board.pc import Pc
from pyvmm.config import MachineConfig
from pyvmm.machine.describe import described

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
PLAIN = (int, bool, str, bytes, tuple, list, dict, type(None))


def config(**more: Any) -> MachineConfig:
    devices = (
        f"{EXAMPLES / 'idio16.py'}:Idio16,port=0",
        f"{EXAMPLES / 'pvpanic.py'}:PvPanic",
        f"{EXAMPLES / 'doubler.py'}:Doubler",
        "pci-testdev",
        "testdev",
    )
    return MachineConfig(guest="hello", memory=16 << 20, tablet=True, rng=True, root_ports=1, devices=devices, **more)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return type(value) in PLAIN


def disturb(board: Pc) -> None:
    board.pio.write(0x3F9, 1, 0x0F)
    board.pio.write(0x70, 1, 0x80 | 0x0B)
    board.pio.write(0x64, 1, 0xD2)
    board.pio.write(0x60, 1, 0x55)
    for _, function in board.pci.parts():
        function.config_write(4, 2, 7)
        function.config_write(0x3C, 1, 0x5A)
        function.set_intx(True)
    source = board.router.source("test")
    source.key(30, 1)
    source.key(0x110, 1)


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
@pytest.mark.parametrize("virtio_input", ["aero", "standard"])
def test_a_board_goes_into_another(irqchip: str, virtio_input: str) -> None:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(described(config(irqchip=irqchip, virtio_input=virtio_input))) for _ in range(2)
        )
        disturb(one)
        saved = one.parts.save()
        assert is_plain(saved)
        two.parts.load(saved)
        assert two.parts.save() == saved
        assert two.nmi_masked
        assert two.pio.ranges != () and [r[:2] for r in two.pio.ranges] == [r[:2] for r in one.pio.ranges]
        assert [r[:2] for r in two.mmio.ranges] == [r[:2] for r in one.mmio.ranges]
        board_parts = {placement.name for placement in one.parts if placement.part is not None}
        functions = {f"pci/{place}" for place, _ in one.pci.parts()}
        assert saved.keys() == board_parts | functions | {"irqchip", "router", "board"}
        assert {"com1", "vga", "testdev", "pci/00.0", "pci/0a.0", "pci/0a.2"} <= saved.keys()
        assert any(name.endswith("/00.0") for name in saved if name.count("/") == 2)  # behind the root port


def test_what_nobody_holds_is_released_by_the_loop() -> None:
    with described(config(virtio_input="aero")) as board:
        source = board.router.source("test")
        source.key(30, 1)
        saved = board.parts.save()
        source.key(30, 0)
        board.parts.load(saved)
        keys = board.router._ps2_keyboards[0]
        assert keys.down == (30,)
        board.loop.run_posted()
        assert not keys.down


def test_a_board_with_another_device_is_refused() -> None:
    with (
        described(config(virtio_input="aero")) as one,
        described(MachineConfig(guest="hello", memory=16 << 20)) as other,
    ):
        saved = one.parts.save()
        with pytest.raises(state.StateError, match="the state of another machine: it has pci/"):
            other.parts.load(saved)


def test_a_device_that_says_nothing_is_refused_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "edu.py").write_text(
        "from pyvmm import PciDevice\n"
        "class Edu(PciDevice):\n"
        "    vendor_id = 0x1234\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fact = 1\n"
    )
    machine = MachineConfig(guest="hello", memory=16 << 20, devices=(f"{tmp_path / 'edu.py'}:Edu",))
    said = r'^pci/01\.0: Edu does not say what its state is: add  STATE = \("fact",\), less'
    with described(machine) as board, pytest.raises(state.StateError, match=said):
        board.parts.save()
