"""Which file is this host's kernel, which release a file is, and where its modules are."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.error import BootError
from pyvmm.boot.linux_kernel import _release, check_readable, host_kernel, modules_folder, release_of
from tests.rig.images import make_bzimage, make_elf

TEXT = b"6.1.0-50-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP\0"


def kernel_of(version: bytes, at: int = 0x300) -> bytearray:
    image = make_bzimage(version.ljust(2048, b"\0"), setup_sects=1)
    struct.pack_into("<H", image, 0x20E, at - 0x200)
    image[at : at + len(version)] = version
    return image


@pytest.mark.parametrize(
    "place", ["boot/vmlinuz-6.1", "usr/lib/modules/6.1/vmlinuz", "lib/modules/6.1/vmlinuz", "boot/kernel-6.1"]
)
def test_the_hosts_own(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert host_kernel("6.1", tmp_path) == file


def test_none_of_the_hosts(tmp_path: Path) -> None:
    with pytest.raises(
        BootError, match=r"no kernel of this host's Linux 6\.1 \(as in .*vmlinuz-6\.1\): name one with -k"
    ):
        host_kernel("6.1", tmp_path)


def test_releases(tmp_path: Path) -> None:
    file = tmp_path / "vmlinuz"
    file.write_bytes(kernel_of(TEXT))
    assert release_of(file) == "6.1.0-50-cloud-amd64"
    file.write_bytes(make_elf([(0x100000, b"x" * 5000 + b"Linux version 6.12.1+deb13 (gcc) #1\0", 8192)]))
    assert release_of(file) == "6.12.1+deb13"
    for data in (b"", b"x", bytes(make_bzimage()), bytes(make_elf([(0x100000, b"x", 1)])), TEXT):
        file.write_bytes(data)
        assert release_of(file) == ""


@given(st.binary(max_size=700), st.integers(0, 0xFFFF), st.sampled_from([b"HdrS", b"\x7fELF", b""]))
def test_any_file_has_a_release_or_none(data: bytes, pointer: int, magic: bytes) -> None:
    image = bytearray(data)
    if magic == b"HdrS" and len(image) > 0x210:
        image[0x1FE:0x200] = b"\x55\xaa"
        image[0x202:0x206] = magic
        struct.pack_into("<H", image, 0x20E, pointer)
    elif magic:
        image[:4] = magic
    release = _release(bytes(image))
    assert release.isprintable() and " " not in release and len(release) < 130


def test_modules_of_an_unpacked_kernel(tmp_path: Path) -> None:
    """boot/ and lib/modules/ as a package has them, the kernel by a link from elsewhere."""
    kernel = tmp_path / "unpacked/boot/vmlinuz-6.1"
    theirs = tmp_path / "unpacked/lib/modules/6.1"
    ours = tmp_path / "modules/6.1"
    for folder in (kernel.parent, theirs, ours):
        folder.mkdir(parents=True)
    kernel.write_bytes(b"")
    link = tmp_path / "vmlinuz"
    link.symlink_to(kernel)
    places = [str(tmp_path / "modules")]
    assert modules_folder(link, "6.1", places) is None
    (ours / "modules.dep").write_text("")
    assert modules_folder(link, "6.1", places) == ours
    (theirs / "modules.dep").write_text("")
    assert modules_folder(link, "6.1", places) == theirs
    assert modules_folder(link, "", places) is None
    assert modules_folder(link, "../6.1", places) is None


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BootError, match="No such file or directory"):
        check_readable(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    check_readable(tmp_path / "fifo")
    with pytest.raises(BootError, match="No such file or directory"):
        release_of(tmp_path / "none")
    file = tmp_path / "vmlinuz-6.8"
    file.write_bytes(b"x")
    file.chmod(0)
    if os.geteuid() == 0:  # who may read it all the same

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BootError) as error:
        check_readable(file)
    assert str(error.value) == (
        f"kernel {file}: may be read by root alone: sudo chmod +r {file}, or name a copy with -k"
    )
