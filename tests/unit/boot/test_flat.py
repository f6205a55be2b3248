from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.error import BootError
from pyvmm.boot.flat import Flat
from pyvmm.boot.load import load
from pyvmm.config import Module
from pyvmm.memory import GuestMemory
from tests.rig.images import ram
from tests.rig.lab import GUESTS26

CODE = b"\xb0\x41\xe6\xe9\xf4"


def test_boot_sector_in_real_mode() -> None:
    memory = GuestMemory.of_size(0x10000)
    state = load(memory, CODE, flat=Flat("real", 0x7C00))
    assert (state.cs.selector, state.rip, state.rsp) == (0, 0x7C00, 0x7C00)
    assert memory.read(0x7C00, 5) == CODE
    assert memory.read(0, 0x7C00) == bytes(0x7C00), "nothing else is written"


@pytest.mark.parametrize("address", [0, 1, 0xFFFF, 0x10000, 0x12345, 0xF0000, 0xFFFF0])
def test_real_mode_reaches_every_address_of_the_first_mib(address: int) -> None:
    state = load(ram(2), CODE, flat=Flat("real", address))
    assert state.cs.base + state.rip == address
    assert state.cs.base == state.cs.selector << 4


def test_32_bit_mode() -> None:
    memory = ram(2)
    state = load(memory, CODE, flat=Flat("32", 0x100000))
    assert (state.rip, state.rsp, state.cs.db, state.cr0 & 0x80000001) == (0x100000, 0x100000, 1, 1)
    assert memory.read(0x100000, 5) == CODE


def test_64_bit_mode() -> None:
    memory = ram(2)
    state = load(memory, CODE, flat=Flat("64", 0x8000))
    assert (state.rip, state.rsp, state.cs.l, state.efer) == (0x8000, 0x8000, 1, 0x500)
    assert memory.read(0x8000, 5) == CODE


@pytest.mark.parametrize(
    "flat, image, message",
    [
        (Flat("real", 0x100000), CODE, "no address"),
        (Flat("64", 1 << 32), CODE, "no address"),
        (Flat("32", -4096), CODE, "no address"),
        (Flat("32", 0x1FFFFE), CODE, "5 bytes do not fit into RAM at 0x1ffffe: give the guest more RAM"),
        (Flat("64", 0x80000), bytes(0x10001), "would cover 0x90000-0x9cfff"),
        (Flat("32", 0x9CFFF), CODE, "would cover"),
        (Flat("linux32", 0x8000), CODE, "goes to 0x100000"),
        (Flat("linux32", 0x100000), bytes(0x100001), "do not fit into RAM at 0x100000: give the guest more RAM"),
        (Flat("64", 0xC0100000), CODE, "from 0xc0000000 to 4 GiB a PC has devices, .*: name another address"),
        (Flat("linux32", 0xC0100000), CODE, "from 0xc0000000 to 4 GiB a PC has devices, .*: name another address"),
    ],
)
def test_what_does_not_fit(flat: Flat, image: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message) as caught:
        load(ram(2), image, flat=flat)
    assert "\n" not in str(caught.value)


def test_flat_binaries_take_no_initrd_and_no_command_line() -> None:
    with pytest.raises(BootError, match="mode real takes no initrd: leave it away"):
        load(ram(2), CODE, modules=[Module(b"x")], flat=Flat("real", 0x7C00))
    with pytest.raises(BootError, match="mode 64 takes no command line: leave it away"):
        load(ram(2), CODE, cmdline="x", flat=Flat("64", 0x100000))


def test_as_the_user_writes_it() -> None:
    assert Flat.parse("real@0x7c00") == Flat("real", 0x7C00)
    assert Flat.parse("64@4096") == Flat("64", 4096)
    assert Flat.parse("real") == Flat("real", 0x7C00)
    assert Flat.parse("linux32") == Flat("linux32", 0x100000)
    for text, message in (("16", "no mode"), ("", "no mode"), ("32@", "no address"), ("32@abc", "no address")):
        with pytest.raises(BootError, match=message):
            Flat.parse(text)


def test_raw_linux_2_6_20() -> None:
    kernel = (GUESTS26 / "vmlinux-2.6.20.bin").read_bytes()
    memory = ram(64)
    state = load(
        memory,
        GUESTS26 / "vmlinux-2.6.20.bin",
        cmdline="console=ttyS0 root=/dev/ram0 rw init=/bin/sh",
        modules=[Module(GUESTS26 / "root.bin")],
        flat=Flat.parse("linux32"),
    )
    assert (state.rip, state.rsi, state.rbx, state.rbp, state.rdi) == (0x100000, 0x90000, 0, 0, 0)
    assert (state.cs.selector, state.ds.selector, state.cr0 & 0x80000001, state.rflags) == (0x10, 0x18, 1, 2)
    assert memory.read(0x100000, len(kernel)) == kernel
    params = memory.read(0x90000, 4096)
    assert params[0x210] == 0xFF
    assert int.from_bytes(params[0x1E0:0x1E4], "little") == 63 * 1024
    assert params[0x1E8] == 4
    cmdline = int.from_bytes(params[0x228:0x22C], "little")
    assert memory.read(cmdline, 45) == b"console=ttyS0 root=/dev/ram0 rw init=/bin/sh\0"
    gpa, size = int.from_bytes(params[0x218:0x21C], "little"), int.from_bytes(params[0x21C:0x220], "little")
    assert (gpa, size) == (62 << 20, 2 << 20)
    assert memory.read(gpa, size) == (GUESTS26 / "root.bin").read_bytes()
    assert [params[i] for i in (6, 7, 0xA, 0xE, 0xF, 0x10)] == [3, 80, 3, 25, 1, 16]


@given(st.sampled_from(["real", "32", "64", "linux32"]), st.integers(-1, 1 << 33), st.integers(1, 0x20000))
@settings(max_examples=100, deadline=None)
def test_any_address(mode: str, address: int, size: int) -> None:
    memory = GuestMemory.of_size(0x300000)
    image = b"\xf4" * size
    try:
        state = load(memory, image, flat=Flat(mode, address))
    except BootError as error:
        assert "\n" not in str(error)
    else:
        assert state.cs.base + state.rip == address
        assert memory.read(address, size) == image
