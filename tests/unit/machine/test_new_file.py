"""A file that takes the place of another."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvmm.machine.new_file import new_file


def test_it_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with new_file(str(path)) as fd:
        os.write(fd, b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), new_file(str(path)):
        raise ZeroDivisionError
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


def test_a_link_still_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for text in (b"first", b"second"):
        with new_file(str(tmp_path / "link")) as fd:
            os.write(fd, text)
        assert (tmp_path / "file").read_bytes() == text and (tmp_path / "link").is_symlink()


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    """A device above all: root may put a file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in ((pipe, "no regular file"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=why), new_file(str(path)):
            pass
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]
