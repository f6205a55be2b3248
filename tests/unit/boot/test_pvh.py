from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.e820 import e820_map
from pyvmm.boot.elf import parse_elf
from pyvmm.boot.error import BootError
from pyvmm.boot.image import Image
from pyvmm.boot.load import load
from pyvmm.config import Module
from pyvmm.memory import GuestMemory
from tests.rig.images import make_elf, make_note, pvh_note, ram

MIB = 1 << 20
CODE = bytes(range(1, 200))
KERNEL = bytes(make_elf([(0x100000, CODE, 0x3000), (0x200000, b"data", 4)], notes=pvh_note(0x100010)))


@pytest.mark.parametrize("bits, size", [(64, 8), (32, 4)])
def test_start_info(bits: int, size: int) -> None:
    memory = ram(64)
    memory.write(0x100000, b"\xff" * 0x4000)
    notes = pvh_note(0x100010, size)
    image = make_elf([(0x100000, CODE, 0x3000), (0x200000, b"data", 4)], bits=bits, notes=notes, vaddr=0x80000000)
    state = load(memory, bytes(image), cmdline="console=hvc0", modules=[Module(b"initrd")], rsdp=0xE1230, fresh=False)
    assert (state.rip, state.cs.db, state.cr0 & 0x80000001, state.cr4, state.rflags) == (0x100010, 1, 1, 0, 2)
    assert (state.tr.base, state.tr.limit) == (0, 0x67)
    assert memory.read(0x100000, 0x3000) == CODE.ljust(0x3000, b"\0"), "bss is cleared"
    assert memory.read(0x103000, 4) == b"\xff" * 4
    assert memory.read(0x200000, 4) == b"data"

    fields = struct.unpack("<4I4QII", memory.read(state.rbx, 56))
    magic, version, flags, modules, modlist, cmdline, rsdp, memmap, count, reserved = fields
    assert (magic, version, flags, modules, rsdp, reserved) == (0x336EC578, 1, 0, 1, 0xE1230, 0)
    assert memory.read(cmdline, 13) == b"console=hvc0\0"
    gpa, size, _, _ = struct.unpack("<4Q", memory.read(modlist, 32))
    assert (gpa, memory.read(gpa, size)) == (64 * MIB - 4096, b"initrd")
    entries = struct.iter_unpack("<QQII", memory.read(memmap, count * 24))
    assert tuple(entry[:3] for entry in entries) == e820_map(memory.regions)


def modules_of(memory: GuestMemory, info: int) -> list[tuple[int, bytes, bytes]]:
    """Each module's address, bytes and command line."""
    count, modlist = struct.unpack("<I Q", memory.read(info + 12, 12))
    return [
        (gpa, memory.read(gpa, size), memory.read(cmdline, 256).partition(b"\0")[0] if cmdline else b"")
        for gpa, size, cmdline, _ in struct.iter_unpack("<4Q", memory.read(modlist, 32 * count))
    ]


def test_linux_gets_one_initrd_of_several() -> None:
    memory = ram(4)
    modules = [Module(b"070701abc"), Module(b"\x1f\x8b1234")]
    info = load(memory, KERNEL, modules=modules).rbx
    assert modules_of(memory, info) == [(4 * MIB - 4096, b"070701abc\0\0\0\x1f\x8b1234", b"")]
    with pytest.raises(BootError, match="initrd: Linux takes no arguments for an initrd: leave 'x' away"):
        load(memory, KERNEL, modules=[Module(b"x", "x")])


def test_another_kernel_gets_each_module_with_its_arguments() -> None:
    memory = ram(4)
    notes = make_note(b"Xen\0", 18, (0x100000).to_bytes(4, "little"))
    image = bytes(make_elf([(0x100000, CODE, 0x3000)], notes=notes))
    info = load(
        memory, image, cmdline="a", modules=[Module(b"dom0", "console=hvc0"), Module(bytes(4097)), Module(b"x")]
    )
    assert modules_of(memory, info.rbx) == [
        (4 * MIB - 0x4000, b"dom0", b"console=hvc0"),
        (4 * MIB - 0x3000, bytes(4097), b""),
        (4 * MIB - 0x1000, b"x", b""),
    ]
    with pytest.raises(BootError, match="200 modules and a memory map"):
        load(memory, image, modules=[Module(b"x")] * 200)


def test_without_initrd_there_is_no_module() -> None:
    memory = ram(4)
    state = load(memory, KERNEL)
    assert struct.unpack("<I Q", memory.read(state.rbx + 12, 12)) == (0, 0)


def test_initrd_stays_above_the_kernel() -> None:
    image = bytes(make_elf([(0x100000, CODE, 2 * MIB)], notes=pvh_note(0x100000)))
    load(ram(4), image, modules=[Module(bytes(MIB))])
    with pytest.raises(BootError, match=r"do not fit into the 1\.0 MiB"):
        load(ram(4), image, modules=[Module(bytes(MIB + 1))])


@pytest.mark.parametrize("stated", [4, 8])
@pytest.mark.parametrize("aligned", [4, 8])
@pytest.mark.parametrize("size", [4, 8])
def test_notes_of_either_alignment_whatever_the_segment_says(stated: int, aligned: int, size: int) -> None:
    """linux-loader's issue 128: a linker that merges .note.gnu.property, aligned to 8, with .note.Xen, aligned to 4."""
    entry = make_note(b"Xen\0", 18, (0x100000).to_bytes(size, "little"), aligned)
    for before in (
        b"",
        make_note(b"Xenon\0", 18, bytes(8), aligned),
        make_note(b"Xen\0", 6, b"abc\0", aligned),
        make_note(b"GNU\0", 5, bytes(16), 8) + make_note(b"Xen\0", 6, b"abc\0", aligned),
        make_note(b"Xen\0", 17, bytes(4), 4) + make_note(b"GNU\0", 5, bytes(12), 4) + make_note(b"A\0", 1, b"", 8),
    ):
        padding = bytes(-len(before) % aligned)
        image = make_elf([(0x100000, CODE, 4096)], notes=before + padding + entry + make_note(b"GNU\0", 3, bytes(20)))
        struct.pack_into("<Q", image, 64 + 56 + 48, stated)
        assert parse_elf(Image(bytes(image))).pvh_entry == 0x100000, before


@pytest.mark.parametrize(
    "note", [make_note(b"Xenon\0", 18, bytes(8)), make_note(b"Xen\0", 18, bytes(12)), b"Xen\0" * 9]
)
def test_notes_that_are_no_entry(note: bytes) -> None:
    assert parse_elf(Image(bytes(make_elf([(0x100000, CODE, 4096)], notes=note)))).pvh_entry is None


@given(st.lists(st.integers(0, 40), max_size=400), st.sampled_from((4, 8)))
@settings(max_examples=200, deadline=None)
def test_any_notes_are_searched_to_the_end(words: list[int], stated: int) -> None:
    image = make_elf([(0x100000, CODE, 4096)], notes=struct.pack(f"<{len(words)}I", *words) + b"\0")
    struct.pack_into("<Q", image, 64 + 56 + 48, stated)
    assert parse_elf(Image(bytes(image))).pvh_entry is None


@pytest.mark.parametrize(
    "image, message",
    [
        (make_elf([(0x100000, CODE, 4096)]), "without PVH note or Multiboot header: .*bzImage"),
        (make_elf([(0x100000, CODE, 4096)], machine=183, notes=pvh_note(0x100000)), "for machine 183, not for x86"),
        (make_elf([], notes=pvh_note(0x100000)), "nothing to load"),
        (make_elf([]), "without program headers"),
        (make_elf([(0x100000, CODE, 4096)], notes=pvh_note(0x200000)), "entry point 0x200000 is in none"),
        (make_elf([(0x100000, CODE, 10)], notes=pvh_note(0x100000)), "segment of 0xc7 bytes in 0xa bytes"),
        (
            make_elf([(0x100000, CODE, 64 * MIB)], notes=pvh_note(0x100000)),
            "no RAM at 0x100000-.*more",
        ),
        (
            make_elf([(0xC0100000, CODE, 4096)], notes=pvh_note(0xC0100000)),
            r"from 0xc0000000 to 4 GiB a PC has devices, whatever its RAM: link it elsewhere, .*AT\(\)",
        ),
        (make_elf([(0xFFFFF000, CODE, 0x2000)], notes=pvh_note(0xFFFFF000)), "beyond 4 GiB"),
        (make_elf([(1 << 63, CODE, 0x2000)], notes=pvh_note(1 << 63)), "beyond 4 GiB"),
        (make_elf([(0x80000, CODE, 0x20000)], notes=pvh_note(0x80000)), "would cover 0x90000-0x9cfff"),
        (
            make_elf([(0x100000, CODE, 0x2000), (0x101000, CODE, 0x2000)], notes=pvh_note(0x100000)),
            "two of its segments are to be loaded to 0x101000",
        ),
    ],
)
def test_what_cannot_be_loaded(image: bytearray, message: str) -> None:
    with pytest.raises(BootError, match=message) as caught:
        load(ram(16), bytes(image))
    assert "\n" not in str(caught.value)


def test_a_segment_in_video_memory() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(0xA0000))), (0xC0000, memoryview(bytearray(2 * MIB)))])
    with pytest.raises(BootError, match="from 0xa0000 to 0xbffff a PC has video memory: link it elsewhere"):
        load(memory, bytes(make_elf([(0xB0000, CODE, 4096)], notes=pvh_note(0xB0000))))


def test_truncation_at_every_byte() -> None:
    memory = ram(4)
    for length in range(1, len(KERNEL) - 40):
        with pytest.raises(BootError) as caught:
            load(memory, KERNEL[:length])
        assert "\n" not in str(caught.value)


def test_very_many_headers_and_endless_notes_are_read_in_bounded_time() -> None:
    """65,535 program headers, each a note segment of 2 MiB that overlaps the others."""
    image = make_elf([(0x100000, CODE, 4096)], notes=bytes(12) * 1000)
    struct.pack_into("<H", image, 56, 0xFFFF)
    header = struct.pack("<II6Q", 4, 0, 0, 0, 0, 2 * MIB, 2 * MIB, 4)
    struct.pack_into("<Q", image, 32, len(image))
    with pytest.raises(BootError, match="nothing to load"):
        load(ram(4), bytes(image) + header * 0xFFFF)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_files_load_or_are_refused(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from((32, 64)))
    image = make_elf([(0x100000, CODE, 0x3000), (0x200000, b"data", 4)], bits=bits, notes=pvh_note(0x100010))
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(4, 64 + 56 * 3) | st.integers(4, len(image) - 1))
        value = data.draw(st.binary(min_size=1, max_size=8))
        image[offset : offset + len(value)] = value
    memory = ram(4)
    try:
        state = load(memory, bytes(image), modules=[Module(b"initrd")])
    except BootError as error:
        assert "\n" not in str(error)
    else:
        assert memory.view(state.rip, 1)
