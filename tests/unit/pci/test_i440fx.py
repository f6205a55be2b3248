"""The 82441FX as SeaBIOS uses it: its identity, and registers that are kept."""

from __future__ import annotations

import pytest

from pyvmm.pci.i440fx import I440fx


def test_identity() -> None:
    config = I440fx().config
    assert (config.get(0x00, 4), config.get(0x2C, 4)) == (0x12378086, 0x11001AF4)
    assert config.get(0x09, 3) == 0x060000 and config.get(0x0E, 1) == 0


@pytest.mark.parametrize(
    ("register", "kept"), [(0x58, 0), (0x59, 0x30), *((0x5A + n, 0x33) for n in range(6)), (0x60, 0)]
)
def test_pam(register: int, kept: int) -> None:
    bridge = I440fx()
    assert bridge.config.get(register, 1) == 0, "after a reset everything comes from the ROM"
    bridge.config_write(register, 1, 0xFF)
    assert bridge.config.get(register, 1) == kept
    bridge.reset_function()
    assert bridge.config.get(register, 1) == 0
