"""Every boot protocol on a real CPU: a kernel of a few bytes says what it found in its registers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvm_cffi.exits import PioOut
from pyvmm.board.layout import DEBUGCON
from pyvmm.boot.flat import Flat
from pyvmm.boot.load import load
from pyvmm.config import Module
from tests.rig.images import make_bzimage, make_elf, multiboot_header, pvh_note
from tests.rig.rig import Rig

ADDRESS = 0x200000
INFO = 0x90000


def kernel32(address: int) -> bytes:
    """Says EAX, EBX and ESI, loads DS and CS anew from the GDT, and ends with 7."""
    start = bytes.fromhex(
        "e7e9"  # out 0xe9,eax
        "89d8 e7e9"  # mov eax,ebx; out 0xe9,eax
        "89f0 e7e9"  # mov eax,esi; out 0xe9,eax
        "66b81800 8ed8 8ed0"  # mov ax,0x18; mov ds,ax; mov ss,ax
        "ea"  # ljmp 0x10:next
    )
    jump = (address + len(start) + 6).to_bytes(4, "little") + b"\x10\0"
    return start + jump + bytes.fromhex("b807000000 e7f4 f4")  # mov eax,7; out 0xf4,eax; hlt


KERNEL64 = bytes.fromhex(
    "89f0 e7e9"  # mov eax,esi; out 0xe9,eax
    "8b0425fc012000 e7e9"  # mov eax,[0x2001fc]; out 0xe9,eax
    "66b81800 8ed8"  # mov ax,0x18; mov ds,ax
    "b807000000 e7f4 f4"  # mov eax,7; out 0xf4,eax; hlt
)


def said(image: bytes, flat: Flat | None = None, modules: Sequence[Module] = ()) -> list[int]:
    """The words that *image* says before it ends as it should."""
    with Rig() as rig:
        rig.start_at(load(rig.memory, image, flat=flat, modules=modules))
        exits, value = rig.run()
    assert value == 7
    words = []
    for exit in exits:
        assert isinstance(exit, PioOut)
        assert (exit.port, exit.size) == (DEBUGCON, 4)
        words.append(exit.value)
    return words


def test_bzimage_of_32_bits() -> None:
    code = kernel32(ADDRESS)
    image = make_bzimage(code.ljust(1024, b"\xf4"), xloadflags=0, pref_address=ADDRESS)
    assert said(bytes(image)) == [0, 0, INFO]


def test_bzimage_of_64_bits() -> None:
    code = bytes(0x1FC) + b"\x78\x56\x34\x12" + KERNEL64
    image = make_bzimage(code.ljust(1024, b"\xf4"), pref_address=ADDRESS)
    assert said(bytes(image)) == [INFO, 0x12345678]


@pytest.mark.parametrize("bits", [32, 64])
def test_pvh(bits: int) -> None:
    image = make_elf([(ADDRESS, kernel32(ADDRESS), 4096)], bits=bits, notes=pvh_note(ADDRESS, bits // 8))
    assert said(bytes(image)) == [0, INFO, 0]


def test_multiboot() -> None:
    code = multiboot_header(3) + kernel32(ADDRESS + 12)
    assert said(bytes(make_elf([(ADDRESS, code, 4096)], bits=32, entry=ADDRESS + 12))) == [0x2BADB002, INFO, 0]


def test_multiboot_modules() -> None:
    """The kernel follows EBX to its first module: where it is, and its first four bytes."""
    code = bytes.fromhex(
        "8b5b18"  # mov ebx,[ebx+24]: mods_addr
        "8b03 e7e9"  # mov eax,[ebx]; out 0xe9,eax
        "8b00 e7e9"  # mov eax,[eax]; out 0xe9,eax
        "b807000000 e7f4 f4"  # mov eax,7; out 0xf4,eax; hlt
    )
    image = make_elf([(ADDRESS, multiboot_header(3) + code, 0x8660)], bits=32, entry=ADDRESS + 12)
    modules = [Module(b"\x04\x03\x02\x01 data", "a=1"), Module(b"second")]
    assert said(bytes(image), modules=modules) == [ADDRESS + 0xA000, 0x01020304]


def test_multiboot_aout_kludge() -> None:
    header = multiboot_header(1 << 16, ADDRESS, ADDRESS, 0, ADDRESS + 4096, ADDRESS + 32)
    assert said(header + kernel32(ADDRESS + 32)) == [0x2BADB002, INFO, 0]


def test_flat_binaries() -> None:
    assert said(kernel32(ADDRESS), Flat("32", ADDRESS)) == [0, 0, 0]
    assert said(kernel32(0x100000), Flat("linux32", 0x100000)) == [0, 0, INFO]
    assert said(KERNEL64.ljust(0x1FC, b"\0") + b"\xef\xbe\xad\xde", Flat("64", ADDRESS)) == [0, 0xDEADBEEF]
    # mov ax,cs; out 0xe9,eax; mov eax,7; out 0xf4,eax
    assert said(bytes.fromhex("66b800000000 8cc8 66e7e9 66b807000000 66e7f4"), Flat("real", 0x23456)) == [0x2000]
