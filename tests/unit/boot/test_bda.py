"""The BIOS data area as SeaBIOS 1.16 leaves it under QEMU, less the printer port that we have not."""

from __future__ import annotations

import pytest

from pyvmm.boot.bda import write_bda
from pyvmm.memory import GuestMemory
from pyvmm.units import MIB


def areas(*ports: int, mouse: bool = True) -> GuestMemory:
    memory = GuestMemory.of_size(MIB)
    memory.view(0, MIB)[:] = b"\xa5" * MIB
    write_bda(memory, ports, pointing_device=mouse)
    return memory


def test_as_a_bios_leaves_it() -> None:
    memory = areas(0x3F8)
    expected = {
        0x400: "f803 0000 0000 0000 0000 0000 0000 c09f 2602 00 7f02 00 00 0000 00 1e00 1e00",
        0x449: "03 5000 0010 0000",
        0x460: "0706 00 d403",
        0x480: "1e00 3e00 18 1000 60 f9 51 08",
    }
    for gpa, text in expected.items():
        wanted = bytes.fromhex(text)
        assert memory.read(gpa, len(wanted)) == wanted, hex(gpa)
    assert memory.read_int(0x46C, 4) == memory.read_int(0x472, 2) == 0


def test_it_owns_its_bytes_and_no_others() -> None:
    """A loader runs again at a reset: what the guest left there must not show."""
    memory = areas(0x3F8)
    assert b"\xa5" not in memory.read(0x400, 0x100) and b"\xa5" not in memory.read(0x9FC00, 0x400)
    assert memory.read(0x9FC00, 2) == b"\x01\x00"
    for gpa in (0, 0x3FF, 0x500, 0x9FBFF, 0xA0000):
        assert memory.read_int(gpa, 1) == 0xA5
    assert memory.read_int(0x40E, 2) << 4 == memory.read_int(0x413, 2) << 10 == 0x9FC00


@pytest.mark.parametrize(
    ("ports", "mouse", "equipment"),
    [((), False, 0x22), ((0x3F8,), True, 0x226), ((0x3F8, 0x2F8, 0x3E8, 0x2E8, 0x1234), False, 0x822)],
)
def test_what_the_board_has(ports: tuple[int, ...], mouse: bool, equipment: int) -> None:
    memory = areas(*ports, mouse=mouse)
    told = [memory.read_int(0x400 + 2 * i, 2) for i in range(4)]
    assert told == [*ports, 0, 0, 0, 0][:4] or told == list(ports[:4])
    assert memory.read_int(0x410, 2) == equipment
    assert memory.read(0x408, 6) == bytes(6), "no printer ports"
