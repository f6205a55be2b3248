from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.bzimage import parse_bzimage
from pyvmm.boot.e820 import E820_TYPE_RESERVED, E820Entry, e820_map
from pyvmm.boot.error import BootError
from pyvmm.boot.image import Image
from pyvmm.boot.load import load
from pyvmm.config import Module
from pyvmm.memory import GuestMemory
from tests.rig.images import FIELDS, make_bzimage, make_old_bzimage, ram
from tests.rig.lab import GUESTS26

MIB = 1 << 20
ZERO_PAGE = 0x90000
VALID = bytes(make_bzimage())


def cstring(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 4096).split(b"\0")[0]


def test_64_bit_entry() -> None:
    memory = ram(64)
    payload = bytes(range(256)) * 9
    state = load(memory, bytes(make_bzimage(payload)), cmdline="console=ttyS0 quiet", rsdp=0xE0000)
    assert state.rip == 0x1000200
    assert state.rsi == ZERO_PAGE
    assert (state.cs.l, state.efer) == (1, 0x500)
    assert memory.read(0x1000000, len(payload)) == payload
    assert cstring(memory, memory.read_int(ZERO_PAGE + 0x228, 4)) == b"console=ttyS0 quiet"
    assert memory.read_int(ZERO_PAGE + 0x70, 8) == 0xE0000
    assert memory.read_int(ZERO_PAGE + 0x214, 4) == 0x1000000
    assert memory.read_int(ZERO_PAGE + 0x210, 1) == 0xFF
    assert memory.read_int(ZERO_PAGE + 0x1EF, 1) == 0, "the sentinel is not copied"


def test_boot_params_tell_of_memory_and_screen() -> None:
    memory = ram(64)
    load(memory, VALID)
    expected = e820_map([(0, 64 * MIB)])
    assert memory.read_int(ZERO_PAGE + 0x1E8, 1) == len(expected)
    table = memory.read(ZERO_PAGE + 0x2D0, 20 * len(expected))
    assert tuple(struct.iter_unpack("<QQI", table)) == expected
    assert memory.read_int(ZERO_PAGE + 0x1E0, 4) == 63 * 1024
    assert memory.read_int(ZERO_PAGE + 0x02, 2) == 63 * 1024
    screen = memory.read(ZERO_PAGE, 0x12)
    assert [screen[i] for i in (6, 7, 0xA, 0xE, 0xF, 0x10)] == [3, 80, 3, 25, 1, 16]


def test_ext_mem_k_is_16_bits() -> None:
    memory = ram(256)
    load(memory, VALID)
    assert memory.read_int(ZERO_PAGE + 0x1E0, 4) == 255 * 1024
    assert memory.read_int(ZERO_PAGE + 0x02, 2) == 0xFFFF


@pytest.mark.parametrize("version, xloadflags", [(0x020F, 0), (0x020B, 1)])
def test_32_bit_entry_where_64_bits_are_not_offered(version: int, xloadflags: int) -> None:
    state = load(ram(64), bytes(make_bzimage(version=version, xloadflags=xloadflags)))
    assert (state.rip, state.rsi, state.rbx, state.rbp, state.rdi) == (0x1000000, ZERO_PAGE, 0, 0, 0)
    assert (state.cs.db, state.cr0 & 0x80000001) == (1, 1)


def test_kernel_that_is_not_relocatable_goes_to_1_mib() -> None:
    memory = ram(64)
    state = load(memory, bytes(make_bzimage(relocatable_kernel=0, xloadflags=0)))
    assert state.rip == 0x100000
    assert memory.read_int(ZERO_PAGE + 0x214, 4) == 0x100000


def test_relocatable_kernel_without_preference_goes_to_its_alignment() -> None:
    image = make_bzimage(end=0x240, version=0x0206, xloadflags=0, kernel_alignment=0x400000)
    assert load(ram(64), bytes(image)).rip == 0x400000


def test_init_size_has_to_fit() -> None:
    image = bytes(make_bzimage(init_size=48 * MIB))
    with pytest.raises(BootError, match=r"needs 64 MiB of RAM.* give the guest more RAM"):
        load(ram(63), image)
    load(ram(64), image)


def test_protocol_2_03() -> None:
    memory = ram(32)
    initrd = bytes(range(256)) * 40
    state = load(memory, bytes(make_old_bzimage()), cmdline="x" * 255, modules=[Module(initrd)])
    assert (state.rip, state.rsi, state.cs.db, state.cs.l) == (0x100000, ZERO_PAGE, 1, 0)
    gpa, size = memory.read_int(ZERO_PAGE + 0x218, 4), memory.read_int(ZERO_PAGE + 0x21C, 4)
    assert (gpa, size) == (32 * MIB - 0x3000, len(initrd))
    assert memory.read(gpa, size) == initrd
    assert memory.read(ZERO_PAGE + 0x230, 0x60) == bytes(0x60), "code behind the header is not copied"
    with pytest.raises(BootError, match="256 bytes, this kernel takes 255: shorten"):
        load(memory, bytes(make_old_bzimage()), cmdline="x" * 256)


def test_protocol_2_03_does_not_get_its_initrd_above_896_mib() -> None:
    memory = ram(1024)
    load(memory, bytes(make_old_bzimage()), modules=[Module(bytes(0x5001))])
    assert memory.read_int(ZERO_PAGE + 0x218, 4) == 0x38000000 - 0x6000


def test_protocol_2_01_gets_the_old_command_line() -> None:
    memory = ram(32)
    load(memory, bytes(make_old_bzimage(version=0x0201)), cmdline="root=/dev/hda1")
    magic, offset = struct.unpack("<HH", memory.read(ZERO_PAGE + 0x20, 4))
    assert magic == 0xA33F
    assert cstring(memory, 0x90000 + offset) == b"root=/dev/hda1"


def test_initrd_keeps_to_initrd_addr_max_and_the_memory_map() -> None:
    memory = ram(128)
    load(memory, bytes(make_bzimage(initrd_addr_max=0x4FFFFFF)), modules=[Module(bytes(4097))])
    assert memory.read_int(ZERO_PAGE + 0x218, 4) == 0x5000000 - 0x2000
    tables = E820Entry(127 * MIB, MIB, E820_TYPE_RESERVED)
    load(memory, VALID, modules=[Module(bytes(4096))], e820=e820_map(memory.regions, [tables]))
    assert memory.read_int(ZERO_PAGE + 0x218, 4) == 127 * MIB - 4096


def test_initrd_stays_below_the_hole() -> None:
    memory = ram(5 * 1024)
    load(memory, bytes(make_bzimage(initrd_addr_max=0xFFFFFFFE)), modules=[Module(b"x")])
    assert memory.read_int(ZERO_PAGE + 0x218, 4) == 0xC0000000 - 4096


def test_several_archives_are_one_initrd() -> None:
    """At multiples of four bytes with zeroes between, as buffer-format.rst wants them; dirty RAM does not show."""
    memory = ram(32)
    memory.write(31 * MIB, b"\xff" * MIB)
    parts = [b"070701" + bytes(7), b"\x28\xb5\x2f\xfd123", b"070702"]
    load(memory, bytes(make_old_bzimage()), modules=[Module(part) for part in parts], fresh=False)
    gpa, size = memory.read_int(ZERO_PAGE + 0x218, 4), memory.read_int(ZERO_PAGE + 0x21C, 4)
    assert gpa == 32 * MIB - 4096
    assert memory.read(gpa, size) == parts[0] + bytes(3) + parts[1] + bytes(1) + parts[2]


@pytest.mark.parametrize(
    "modules, message",
    [
        ([Module(b"070701"), Module(b"\x45\x3d\xcd\x28 cramfs")], "initrd: no cpio archive, .* give one"),
        ([Module(bytes(2048)), Module(b"070701")], "initrd: no cpio archive, .* give one"),
        ([Module(b"070701"), Module(b"070701", "a b")], "initrd: Linux takes no arguments .*: leave 'a b' away"),
        ([Module(b"070701"), Module(b"070701" + bytes(13 * MIB))], "2 initrds or modules: 13.0 MiB do not fit"),
    ],
    ids=range(4),
)
def test_initrds_of_which_something_would_be_lost(modules: list[Module], message: str) -> None:
    with pytest.raises(BootError, match=message):
        load(ram(18), VALID, modules=modules)


def test_initrd_that_does_not_fit() -> None:
    with pytest.raises(BootError, match=r"initrd: 20.0 MiB, larger than RAM: give the guest more RAM"):
        load(ram(18), VALID, modules=[Module(bytes(20 * MIB))])
    with pytest.raises(BootError, match=r"initrd: 2.0 MiB do not fit into the 1.0 MiB between .* give the guest more"):
        load(ram(18), VALID, modules=[Module(bytes(2 * MIB))])
    with pytest.raises(BootError, match="takes none above: use a smaller one"):
        load(ram(64), bytes(make_bzimage(initrd_addr_max=0x11FFFFF)), modules=[Module(bytes(2 * MIB))])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 0x0300}, "protocol 3.00"),
        ({"version": 0x01FF}, "protocol 1.255"),
        ({"jump": 0x10EB}, "setup header ends at 0x212"),
        ({"jump": 0xFFEB}, "setup header ends at 0x301"),
        ({"loadflags": 0}, "zImage"),
        ({"setup_sects": 255}, "truncated"),
        ({"syssize": 0xFFFFFFFF}, "truncated"),
        ({"syssize": 0x81}, "truncated"),
        ({"kernel_alignment": 0}, "kernel_alignment"),
        ({"kernel_alignment": 0x300000}, "kernel_alignment"),
        ({"kernel_alignment": 1}, "kernel_alignment"),
        ({"pref_address": 0x1000}, "asks for memory"),
        ({"pref_address": 1 << 63}, "asks for memory"),
        ({"init_size": 0xFFFFFFFF}, "asks for memory"),
        ({"pref_address": 0xF0000000}, "needs .* MiB of RAM"),
    ],
)
def test_fields_out_of_range(changes: dict[str, int], message: str) -> None:
    image = bytearray(VALID)
    for name, value in changes.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, image, offset, value)
    with pytest.raises(BootError, match=message) as caught:
        load(ram(64), bytes(image))
    assert "\n" not in str(caught.value)


def test_a_payload_may_be_short_by_less_than_a_paragraph_and_long_by_a_signature() -> None:
    memory = ram(64)
    load(memory, bytes(make_bzimage(b"\x90" * 1023)))
    load(memory, bytes(make_bzimage(b"\x90" * 1024, syssize=64)) + b"signature")
    assert memory.read(0x1000400, 9) == bytes(9)


def test_truncation_at_every_byte_of_the_header() -> None:
    memory = ram(64)
    for length in range(1, 1024 + 1):
        with pytest.raises(BootError) as caught:
            load(memory, VALID[:length])
        assert str(caught.value).startswith("kernel: ")
        assert "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_headers_load_or_are_refused(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from((VALID, bytes(make_old_bzimage())))))
    for name in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4)):
        offset, form = FIELDS[name]
        size = struct.calcsize(form)
        image[offset : offset + size] = data.draw(st.binary(min_size=size, max_size=size))
    cut = data.draw(st.integers(0, len(image)) | st.just(len(image)))
    memory = ram(20)
    try:
        state = load(memory, bytes(image[:cut]), cmdline="a b", modules=[Module(b"initrd")])
    except BootError as error:
        assert "\n" not in str(error)
    else:
        assert memory.view(state.rip, 1)


@given(st.binary(max_size=0x120))
@settings(max_examples=200, deadline=None)
def test_random_setup_headers(fields: bytes) -> None:
    image = bytearray(VALID)
    image[0x206 : 0x206 + len(fields)] = fields
    try:
        kernel = parse_bzimage(Image(bytes(image)))
    except BootError:
        return
    assert 0x100000 <= kernel.load_address < kernel.memory_end <= 1 << 32
    assert kernel.offset + kernel.length <= len(image)


@pytest.mark.parametrize("name, setup", [("vmlinuz-2.6.10", 12), ("bzImage-2.6.11", 12)])
def test_linux_2_6(name: str, setup: int) -> None:
    path = GUESTS26 / name
    memory = ram(128)
    state = load(memory, path, cmdline="console=ttyS0", modules=[Module(GUESTS26 / "initrd-2.6.10")])
    assert (state.rip, state.rsi) == (0x100000, ZERO_PAGE)
    data = path.read_bytes()
    assert memory.read(0x100000, len(data) - setup * 512) == data[setup * 512 :]
    assert memory.read(ZERO_PAGE + 0x1F1, 0x1F) == data[0x1F1:0x210]
    initrd = (GUESTS26 / "initrd-2.6.10").read_bytes()
    gpa = memory.read_int(ZERO_PAGE + 0x218, 4)
    assert gpa == (128 * MIB - len(initrd)) & ~0xFFF
    assert memory.read(gpa, len(initrd)) == initrd
