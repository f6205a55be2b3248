from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.e820 import e820_map
from pyvmm.boot.error import BootError
from pyvmm.boot.load import load
from pyvmm.config import Module
from pyvmm.memory import GuestMemory
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
    state = load(memory, elf(entry=0x100010), cmdline="a b", modules=[Module(initrd)])
    assert (state.rip, state.rax, state.cs.db, state.cr0 & 0x80000001) == (0x100010, 0x2BADB002, 1, 1)
    assert memory.read(0x10000C, len(CODE)) == CODE
    info = memory.read(state.rbx, 116)
    flags, lower, upper, _, cmdline, count, mods = struct.unpack_from("<7I", info)
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (639, 63 * 1024)
    assert memory.read(cmdline, 11) == b"kernel a b\0"
    assert count == 1
    start, end, string, reserved = struct.unpack("<4I", memory.read(mods, 16))
    assert (start, memory.read(start, end - start), reserved) == (0x103000, b"module", 0), "as QEMU puts it"
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
    state = load(memory, AOUT + b"symbols", fresh=False)
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
    for image in (bytes(2) + header + CODE, header[:11] + b"\0" + header[12:] + CODE):
        with pytest.raises(BootError, match="no kernel format"):
            load(ram(4), image)
    for image in (bytes(8192 - 8) + header + CODE, bytes(0x3000) + header + CODE):
        with pytest.raises(BootError, match=r"header is at 0x.* link it into the first 8 KiB"):
            load(ram(4), image)
    decoy = header[:4] * 5
    assert load(ram(4), bytes(2) + decoy + bytes(2) + header + CODE).rip == 0x100010


def modules_of(memory: GuestMemory, info: int) -> list[tuple[int, bytes, bytes]]:
    """Each module's address, bytes and string."""
    count, mods = struct.unpack("<II", memory.read(info + 20, 8))
    found = []
    for start, end, string, _ in struct.iter_unpack("<4I", memory.read(mods, 16 * count)):
        found.append((start, memory.read(start, end - start), memory.read(string, 256).partition(b"\0")[0]))
    return found


def test_modules_lie_page_aligned_behind_the_kernel_each_with_its_arguments(tmp_path: Path) -> None:
    for name, data in (("kernel", elf()), ("a", bytes(4097)), ("b", b"bb"), ("c", b"c")):
        (tmp_path / name).write_bytes(data)
    memory = ram(4)
    modules = [Module(tmp_path / "a", "x=1 y"), Module(tmp_path / "b"), Module(b"memory", "z"), Module(tmp_path / "c")]
    info = load(memory, tmp_path / "kernel", cmdline="foo bar=1", modules=modules).rbx
    assert modules_of(memory, info) == [
        (0x103000, bytes(4097), f"{tmp_path}/a x=1 y".encode()),
        (0x105000, b"bb", f"{tmp_path}/b".encode()),
        (0x106000, b"memory", b"module z"),
        (0x107000, b"c", f"{tmp_path}/c".encode()),
    ]
    cmdline = memory.read(memory.read_int(info + 16, 4), 256).partition(b"\0")[0]
    assert cmdline == f"{tmp_path}/kernel foo bar=1".encode()


def test_what_modules_have_room_for() -> None:
    memory = ram(4)
    assert len(modules_of(memory, load(memory, elf(), modules=[Module(b"x")] * 200).rbx)) == 200
    for modules, message in (
        ([Module(b"x")] * 300, "300 modules and a memory map of 4 entries are more than"),
        ([Module(b"x", "y" * 10000)] * 2, "have 21024 bytes, there is room for 20480: shorten"),
        ([Module(b"x", "\0")], "the command line of a module holds a zero byte"),
        ([Module(b"x")] * 3 + [Module(bytes(3 * MIB))], "module: 3.0 MiB do not fit .* more RAM"),
        ([Module(bytes(5 * MIB))], "module: 5.0 MiB, larger than RAM"),
    ):
        with pytest.raises(BootError, match=message) as caught:
            load(ram(4), elf(), cmdline="z" * 1000, modules=modules)
        assert "\n" not in str(caught.value)


def test_multiboot_2_only() -> None:
    words = (0xE85250D6, 0, 24)
    header = struct.pack("<6I", *words, -sum(words) & 0xFFFFFFFF, 0, 8)
    for image in (bytes(make_elf([(0x100000, bytes(8) + header + CODE, 0x2000)])), bytes(64) + header + CODE):
        with pytest.raises(BootError, match=r"for Multiboot 2 only, .*: give it a Multiboot 1 header or a PVH note"):
            load(ram(4), image)


@pytest.mark.parametrize("bss_end", [0xBFFFF000, 0xC0000000])
def test_fresh_ram_is_not_cleared_again(bss_end: int) -> None:
    """Of a bss that reaches up to the hole no page is touched: neither time nor the host's memory is lost."""
    header = multiboot_header(KLUDGE, 0x100000, 0x100000, 0, bss_end, 0x100020)
    memory = ram(3072)
    touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    load(memory, header + CODE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - touched < 5000


def test_a_bss_in_the_hole_is_refused_as_such() -> None:
    header = multiboot_header(KLUDGE, 0x100000, 0x100000, 0, 0xC0001000, 0x100020)
    with pytest.raises(BootError, match=r"from 0xc0000000 to 4 GiB a PC has devices, .*: link it elsewhere"):
        load(ram(4), header + CODE)


def test_bss_is_cleared_below_1_mib_even_in_fresh_ram() -> None:
    """Tables of the machine may be there."""
    memory = ram(4)
    memory.write(0xF0000, b"_MP_")
    load(memory, multiboot_header(KLUDGE, 0xE0000, 0xE0000, 0, 0x110000, 0xE0020) + CODE)
    assert memory.read(0xF0000, 4) == bytes(4)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_addresses_load_or_are_refused(data: st.DataObject) -> None:
    near = st.integers(0x100000 - 64, 0x100000 + 512)
    words = data.draw(st.lists(st.integers(0, 0xFFFFFFFF) | near | st.just(0), min_size=5, max_size=5))
    before = data.draw(st.integers(0, 16)) * 4
    memory = ram(4)
    try:
        state = load(memory, bytes(before) + multiboot_header(KLUDGE, *words) + CODE, modules=[Module(b"initrd")])
    except BootError as error:
        assert "\n" not in str(error)
    else:
        assert memory.view(state.rip, 1)
