"""The ROM of a firmware: where it is, what of it is below 1 MiB, and which images there are."""

from __future__ import annotations

import pytest

from pyvmm.board.rom import FirmwareRom
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import KIB, MIB


def image(size: int) -> bytes:
    """Each 4 bytes of it are their offset."""
    return b"".join(offset.to_bytes(4, "little") for offset in range(0, size, 4))


@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 2 * MIB, 16 * MIB])
def test_it_ends_at_4_gib_and_its_last_128_kib_at_1_mib(size: int) -> None:
    memory = GuestMemory.of_size(MIB)
    rom = FirmwareRom(memory, image(size), "x")
    assert rom.gpa + size == 1 << 32
    region = memory.region_at(rom.gpa)
    assert (bytes(region.buffer), region.kind) == (rom.image, "rom")
    shadow = min(size, 128 * KIB)
    assert rom.shadow() == MIB - shadow
    assert memory.read(MIB - shadow, shadow) == rom.image[-shadow:]
    assert memory.read(0, MIB - shadow) == bytes(MIB - shadow), "the rest of RAM stays"


def test_a_shadow_that_was_written_to_is_made_anew() -> None:
    memory = GuestMemory.of_size(MIB)
    rom = FirmwareRom(memory, image(64 * KIB), "x")
    rom.shadow()
    memory.write(MIB - 16, bytes(16))
    rom.shadow()
    assert memory.read(MIB - 16, 16) == rom.image[-16:]


def test_it_is_no_ram() -> None:
    """No DMA reaches it, and no snapshot has it."""
    memory = GuestMemory.of_size(MIB)
    rom = FirmwareRom(memory, image(64 * KIB), "x")
    assert memory.regions == ((0, MIB),)
    with pytest.raises(GuestMemoryError):
        memory.view(rom.gpa, 16)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 16 * MIB + 4096])
def test_what_is_no_image(size: int) -> None:
    with pytest.raises(UserError, match=f"^firmware x: {size} bytes are no image of one: it has whole"):
        FirmwareRom(GuestMemory.of_size(MIB), bytes(size), "x")
