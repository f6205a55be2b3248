from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.e820 import e820_map
from pyvmm.boot.error import BootError
from pyvmm.boot.load import load
from tests.rig.images import make_elf, multiboot_header, pvh_note, ram

MIB = 1 << 20
KLUDGE = 1 << 16
CODE = bytes(range(1, 200))
AOUT = bytes(64) + multiboot_header(KLUDGE, 0x100040, 0x100000, 0x100000 + 64 + 32 + 199, 0x102000, 0x100060) + CODE


def elf(flags: int = 3, *, entry: int = 0x100000, vaddr: int = 0) -> bytes:
    return bytes(make_elf([(0x100000, multiboot_header(flags) + CODE, 0x2000)], bits=32, entry=entry, vaddr=vaddr))


def test_elf_and_its_information(tmp_path: Path) -> None:
    memory = ram(64)
    initrd = tmp_path / "disk.img"
    initrd.write_bytes(b"module")
    state = load(memory, elf(entry=0x100010), cmdline="a b", initrd=initrd)
    assert (state.rip, state.rax, state.cs.db, state.cr0 & 0x80000001) == (0x100010, 0x2BADB002, 1, 1)
    assert memory.read(0x10000C, len(CODE)) == CODE
    info = memory.read(state.rbx, 116)
    flags, lower, upper, _, cmdline, count, mods = struct.unpack_from("<7I", info)
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (639, 63 * 1024)
    assert memory.read(cmdline, 4) == b"a b\0"
    assert count == 1
    start, end, string, reserved = struct.unpack("<4I", memory.read(mods, 16))
    assert (start % 4096, memory.read(start, end - start), reserved) == (0, b"module", 0)
    assert memory.read(string, len(str(initrd)) + 1) == str(initrd).encode() + b"\0"
    length, gpa = struct.unpack_from("<2I", info, 44)
    entries = list(struct.iter_unpack("<IQQI", memory.read(gpa, length)))
    assert all(entry[0] == 20 for entry in entries)
    assert tuple(entry[1:] for entry in entries) == e820_map(memory.regions)
    assert memory.read(int.from_bytes(info[64:68], "little"), 6) == b"pyvmm\0"


def test_text_framebuffer_where_the_kernel_asks_for_a_video_mode() -> None:
    memory = ram(4)
    info = memory.read(load(memory, elf(7)).rbx, 116)
    assert int.from_bytes(info[:4], "little") & 1 << 12
    assert struct.unpack_from("<Q3IBB", info, 88) == (0xB8000, 160, 80, 25, 16, 2)
    assert int.from_bytes(memory.read(load(memory, elf(3)).rbx, 4), "little") & 1 << 12 == 0


def test_virtual_entry_point_is_made_physical() -> None:
    assert load(ram(4), elf(entry=0xC0100010, vaddr=0xC0000000)).rip == 0x100010


def test_kernel_of_64_bit_elf() -> None:
    image = make_elf([(0x100000, multiboot_header(0) + CODE, 0x2000)], entry=0x100020)
    assert load(ram(4), bytes(image)).rax == 0x2BADB002


def test_pvh_goes_first() -> None:
    image = make_elf([(0x100000, multiboot_header(0) + CODE, 0x2000)], notes=pvh_note(0x100020))
    assert load(ram(4), bytes(image)).rax == 0


def test_aout_kludge() -> None:
    memory = ram(4)
    memory.write(0x100000, b"\xff" * 0x3000)
    state = load(memory, AOUT + b"symbols")
    assert (state.rip, state.rax) == (0x100060, 0x2BADB002)
    assert memory.read(0x100000, len(AOUT)) == AOUT
    assert memory.read(0x100000 + len(AOUT), 0x2000 - len(AOUT)) == bytes(0x2000 - len(AOUT)), "bss is cleared"
    assert memory.read(0x102000, 1) == b"\xff"


def test_aout_kludge_that_loads_the_whole_file_from_its_header_on() -> None:
    memory = ram(4)
    load(memory, bytes(100) + multiboot_header(KLUDGE, 0x200000, 0x200000, 0, 0, 0x200020) + CODE)
    assert memory.read(0x200020, len(CODE)) == CODE


@pytest.mark.parametrize(
    "image, message",
    [
        (elf(flags=0x10), "demands features 0x10"),
        (elf(entry=0x300000), "entry point 0x300000 is in none"),
        (bytes(32) + multiboot_header(3) + CODE, "not ELF and does not say where it goes"),
        (bytes(32) + multiboot_header(KLUDGE, 0, 0), "ends inside it"),
        (multiboot_header(KLUDGE, 0x100000, 0x100001, 0, 0, 0x100000) + CODE, "load_addr 0x100001"),
        (multiboot_header(KLUDGE, 0x100000, 0xFF000, 0, 0, 0x100000) + CODE, "load_addr 0xff000"),
        (multiboot_header(KLUDGE, 0x100000, 0x100000, 0x200000, 0, 0x100000) + CODE, "load_end_addr 0x200000"),
        (multiboot_header(KLUDGE, 0x100000, 0x100000, 1, 0, 0x100000) + CODE, "load_end_addr 0x1"),
        (multiboot_header(KLUDGE, 0x100000, 0x100000, 0, 0xFFFFFFFF, 0x100000) + CODE, "no RAM at"),
        (multiboot_header(KLUDGE, 0x90000, 0x90000, 0, 0, 0x90000) + CODE, "would cover"),
    ],
)
def test_what_cannot_be_loaded(image: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message) as caught:
        load(ram(4), image)
    assert "\n" not in str(caught.value)


def test_header_has_to_be_aligned_and_in_the_first_8_kib() -> None:
    header = multiboot_header(KLUDGE, 0x100000, 0x100000, 0, 0, 0x100010)
    load(ram(4), bytes(8192 - 32) + header + CODE)
    for image in (bytes(2) + header + CODE, bytes(8192 - 8) + header + CODE, header[:11] + b"\0" + header[12:] + CODE):
        with pytest.raises(BootError, match="no kernel format"):
            load(ram(4), image)
    decoy = header[:4] * 5
    assert load(ram(4), bytes(2) + decoy + bytes(2) + header + CODE).rip == 0x100010


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_addresses_load_or_are_refused(data: st.DataObject) -> None:
    near = st.integers(0x100000 - 64, 0x100000 + 512)
    words = data.draw(st.lists(st.integers(0, 0xFFFFFFFF) | near | st.just(0), min_size=5, max_size=5))
    before = data.draw(st.integers(0, 16)) * 4
    memory = ram(4)
    try:
        state = load(memory, bytes(before) + multiboot_header(KLUDGE, *words) + CODE, initrd=b"initrd")
    except BootError as error:
        assert "\n" not in str(error)
    else:
        assert memory.view(state.rip, 1)
