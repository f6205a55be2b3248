"""What the user gets for a file that is no kernel: one line that says what it is instead."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.error import BootError
from pyvmm.boot.load import load
from pyvmm.config import Module
from tests.rig.images import make_bzimage, make_elf, pvh_note, ram
from tests.rig.lab import GUESTS26

KERNEL = bytes(make_bzimage())


def at(offset: int, magic: bytes, size: int = 40960) -> bytes:
    return (bytes(offset) + magic).ljust(size, b"\0")


@pytest.mark.parametrize(
    "data, message",
    [
        (gzip.compress(KERNEL), "a gzip file: unpack it first"),
        (lzma.compress(KERNEL), "a xz file: unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "a zstd file: unpack it first"),
        (b"MZ" + bytes(1000), "a PE program"),
        (at(510, b"\x55\xaa"), "a boot sector or a disk image"),
        (KERNEL[:0x203], "cut off after 515 bytes"),
        (KERNEL[:0x200], "cut off after 512 bytes"),
        (at(0, b"QFI\xfb"), "a qcow2 disk image"),
        (at(0x8001, b"CD001"), "an ISO 9660 image"),
        (at(0x438, b"\x53\xef"), "an ext2, ext3 or ext4 file system"),
        (b"070701" + bytes(200), "a cpio archive, an initrd perhaps"),
        (at(257, b"ustar"), "a tar archive"),
        (at(0x38, b"ARM\x64"), "an arm64 kernel"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file (6 bytes)"),
        (b"\0", "no kernel format that is known (1 bytes)"),
        (bytes(8192), "no kernel format that is known (8 KiB)"),
    ],
)
def test_files_that_are_no_kernel(data: bytes, message: str) -> None:
    with pytest.raises(BootError) as caught:
        load(ram(4), data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_real_files_that_are_no_kernel(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "absent", "No such file"),
        (GUESTS26 / "initrd-2.6.10", "a cramfs file system"),
        (GUESTS26 / "root.bin", "an ext2, ext3 or ext4 file system"),
        (GUESTS26 / "README.md", "a text file"),
        (GUESTS26 / "vmlinux-2.6.20.bin", "for a flat binary say so"),
        (Path(sys.executable).resolve(), "an ELF file without PVH note"),
    ):
        with pytest.raises(BootError) as caught:
            load(ram(4), path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"kernel {path}: ")


def test_initrd_that_cannot_be_read_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    before = os.listdir("/proc/self/fd")
    for initrd in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BootError, match=r"^initrd "):
            load(ram(32), tmp_path / "kernel", modules=[Module(initrd)])
    assert os.listdir("/proc/self/fd") == before


def test_kernels_need_2_mib() -> None:
    with pytest.raises(BootError, match=r"2 MiB of RAM at the very least: give the guest more RAM"):
        load(ram(1), KERNEL)


@pytest.mark.parametrize(
    "cmdline, message",
    [
        ("x" * 2048, "2048 bytes, this kernel takes 2047: shorten it"),
        ("a\0b", "zero byte"),
        ("\ud800", "not Unicode"),
    ],
)
def test_command_lines_that_cannot_be(cmdline: str, message: str) -> None:
    with pytest.raises(BootError, match=message):
        load(ram(32), KERNEL, cmdline=cmdline)


def test_command_line_is_bounded_by_its_room_whatever_the_header_says() -> None:
    image = bytes(make_bzimage(cmdline_size=0xFFFFFFFF))
    load(ram(32), image, cmdline="x" * 0x4FFF)
    with pytest.raises(BootError, match=r"20480 bytes, this kernel takes 20479"):
        load(ram(32), image, cmdline="x" * 0x5000)


def test_command_line_of_any_bytes_is_passed_on() -> None:
    memory = ram(32)
    load(memory, KERNEL, cmdline="ä\udcff")
    assert memory.read(memory.read_int(0x90228, 4), 4) == b"\xc3\xa4\xff\0"


@given(st.binary(max_size=2000) | st.binary(max_size=200).map(lambda tail: KERNEL[:512] + tail))
@settings(max_examples=200, deadline=None)
def test_random_bytes(data: bytes) -> None:
    try:
        load(ram(4), data)
    except BootError as error:
        assert "\n" not in str(error)


@given(st.sampled_from((b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x01\x01")), st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_elf(magic: bytes, data: bytes) -> None:
    with pytest.raises(BootError):
        load(ram(4), magic + data)


def test_imports_stay_cheap() -> None:
    """Nothing that start-up would have to wait for before it is known what to boot, and nothing that needs KVM."""
    code = "import sys, pyvmm.boot.load, pyvmm.boot.entry, pyvmm.boot.mptable; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {
        "pyvmm.boot.bzimage",
        "pyvmm.boot.elf",
        "dataclasses",
        "kvm_cffi",
        "cffi",
        "gzip",
        "lzma",
        "subprocess",
        "socket",
        "asyncio",
    } & set(modules)


def test_big_kernel_is_copied_once() -> None:
    """Straight from the file into guest RAM: no copy of it in the monitor's own memory."""
    code = (
        "import sys, tracemalloc\n"
        "from pyvmm.boot.load import load\n"
        "from pyvmm.config import Module\n"
        "from tests.rig.images import ram\n"
        "memory = ram(96)\n"
        "load(memory, sys.argv[1])  # the modules are in now\n"
        "tracemalloc.start()\n"
        "load(memory, sys.argv[1], modules=[Module(sys.argv[1])])\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    path = GUESTS26 / "vmlinuz-2.6.10"
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < path.stat().st_size // 8


def test_pvh_kernel_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(make_elf([(0x100000, b"\xf4", 4096)], notes=pvh_note(0x100000)))
    assert load(ram(4), path).rip == 0x100000
