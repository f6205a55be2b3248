from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.boot.error import BootError
from pyvmm.boot.image import Image
from pyvmm.memory import GuestMemory, GuestMemoryError


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_and_file_behave_alike(tmp_path: Path) -> None:
    data = bytes(range(256)) * 40
    (tmp_path / "kernel").write_bytes(data)
    before = open_descriptors()
    for source in (data, tmp_path / "kernel", str(tmp_path / "kernel")):
        memory = GuestMemory.of_size(0x10000)
        with Image(source) as image:
            assert image.size == len(data)
            assert image.read(10, 4) == data[10:14]
            assert image.read(len(data) - 2, 100) == data[-2:]
            assert image.read(len(data) + 5, 100) == b""
            assert image.read((1 << 64) - 16, 100) == b""
            image.load(memory, 0x1001, 3, 9000)
            with pytest.raises(BootError, match="truncated"):
                image.load(memory, 0, 1, len(data))
            with pytest.raises(GuestMemoryError):
                image.load(memory, 0xFFFF, 0, 2)
        assert memory.read(0x1001, 9000) == data[3:9003]
    assert open_descriptors() == before


def test_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"initrd")
    os.close(writer)
    with Image(f"/proc/self/fd/{reader}", "initrd") as image:
        assert (image.size, image.read(0, 100)) == (6, b"initrd")
    os.close(reader)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = open_descriptors()
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "empty" / "x", "Not a directory"),
        ("/dev/zero", "neither a file nor a pipe"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(BootError, match=message) as caught:
            Image(path, "initrd")
        assert str(caught.value).startswith("initrd ")
        assert "\n" not in str(caught.value)
    with pytest.raises(BootError, match="empty"):
        Image(b"")
    assert open_descriptors() == before


def test_file_that_shrinks_while_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bytes(8192))
    with Image(path) as image:
        os.truncate(path, 4096)
        with pytest.raises(BootError, match="became shorter"):
            image.load(GuestMemory.of_size(8192), 0, 0, 8192)
