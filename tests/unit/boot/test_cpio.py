"""The archive that Linux unpacks: read back by the format's description, and by cpio itself."""

from __future__ import annotations

import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import cpio
from pyvmm.boot.cpio import Archive
from pyvmm.boot.error import BootError
from tests.rig.cpio import read_newc

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join)
entries = st.one_of(
    st.tuples(st.just("file"), paths, st.binary(max_size=40), st.integers(0, 0o7777)),
    st.tuples(st.just("directory"), paths, st.integers(0, 0o7777)),
    st.tuples(st.just("symlink"), paths, names),
    st.tuples(st.just("device"), paths, st.integers(0, 4095), st.integers(0, 0xFFFFF)),
)


@given(st.lists(entries, max_size=12))
def test_what_goes_in_comes_out(steps: list[tuple[str, str, object, object]]) -> None:
    archive, expected = Archive(), {}
    for what, path, *rest in steps:
        try:
            getattr(archive, what)(f"/{path}", *rest)
        except BootError as error:
            assert "a directory in the guest" in str(error) or path.split("/")[0] == "TRAILER!!!"
            continue
        assert path in archive and f"/{path}" in archive
        # What was a file where a folder is now is gone; what was in a folder that is a file now cannot be.
        expected[path] = what, rest
    found = read_newc(bytes(archive))
    for path, (what, rest) in expected.items():
        entry = found[path]
        match what:
            case "file" if stat.S_ISREG(entry.mode):
                assert (entry.data, entry.mode & 0o7777) == (rest[0], rest[1])
            case "symlink" if stat.S_ISLNK(entry.mode):
                assert entry.data.decode() == rest[0]
            case "device" if stat.S_ISCHR(entry.mode):
                assert entry.device == (rest[0], rest[1])
            case _:
                assert stat.S_ISDIR(entry.mode)
                assert what == "directory" or any(other.startswith(f"{path}/") for other in expected)


def test_cpio_reads_it() -> None:
    archive = Archive()
    archive.device("/dev/console", 5, 1)
    archive.file("/init", b"#!/bin/sh\n", 0o755)
    archive.symlink("/bin/sh", "busybox")
    archive.directory("/tmp", 0o1777)
    listed = subprocess.run(["cpio", "-itvn"], input=bytes(archive), capture_output=True, check=True)
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    assert [(words[0], words[2], words[3], words[-1]) for words in lines] == [
        ("drwxr-xr-x", "0", "0", "dev"),
        ("crw-------", "0", "0", "dev/console"),
        ("-rwxr-xr-x", "0", "0", "init"),
        ("drwxr-xr-x", "0", "0", "bin"),
        ("lrwxrwxrwx", "0", "0", "busybox"),
        ("drwxrwxrwt", "0", "0", "tmp"),
    ]
    assert lines[1][4:6] == ["5,", "1"]


def test_a_path_given_again_is_replaced() -> None:
    archive = Archive()
    archive.symlink("/bin/ls", "busybox")
    archive.file("bin/./ls", b"mine", 0o755)
    archive.file("/bin/../../etc/x", b"")
    found = read_newc(bytes(archive))
    assert list(found) == ["bin", "bin/ls", "etc", "etc/x"]
    assert found["bin/ls"].data == b"mine"


def test_bytes_of_a_name_that_are_no_text() -> None:
    archive = Archive()
    archive.file("/a\udcff", b"")
    assert b"a\xff\0" in bytes(archive)


@pytest.mark.parametrize("path", ["", "/", "/.", "a\0b", "x" * 4096, "/TRAILER!!!", "TRAILER!!!/file"])
def test_no_path(path: str) -> None:
    with pytest.raises(BootError, match="no path for a file in the guest"):
        Archive().file(path, b"")


def test_a_file_too_large_for_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "MAX_FILE", 3)
    with pytest.raises(BootError, match="4 bytes, an initramfs has room for less than 4 GiB"):
        Archive().file("/a", b"1234")
