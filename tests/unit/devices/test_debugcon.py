"""The debug console port on a bus, as a guest reaches it."""

from __future__ import annotations

from pyvmm.bus import Bus
from pyvmm.devices.debugcon import Debugcon


def test_bytes_come_out_and_the_port_names_itself() -> None:
    out = bytearray()
    bus = Bus("pio", 0x10000)
    bus.map(0xE9, 1, Debugcon(out.extend))
    assert bus.read(0xE9, 1) == 0xE9
    for byte in b"hi\n":
        bus.write(0xE9, 1, byte)
    bus.write(0xE9, 2, 0x2141)
    assert out == b"hi\nA"
    assert bus.read(0xE9, 2) == 0xFFE9
