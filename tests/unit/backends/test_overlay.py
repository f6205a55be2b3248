"""What is kept beside a disk: damaged data of a snapshot is one line, and space is used once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.backends import overlay
from pyvmm.backends.image import FileImage
from pyvmm.backends.overlay import CLUSTER, Overlay
from pyvmm.state import StateError

CLUSTERS = 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Overlay]:
    path = tmp_path / "disk.img"
    path.write_bytes(b"b" * (CLUSTERS * CLUSTER - CLUSTER // 2))
    made = Overlay(FileImage(path, write=False), "x")
    yield made
    made.close()


def put(disk: Overlay, cluster: int, byte: bytes) -> None:
    disk.write([memoryview(byte * CLUSTER)], cluster * CLUSTER)


def get(disk: Overlay, cluster: int) -> bytes:
    found = bytearray(1)
    disk.read([memoryview(found)], cluster * CLUSTER)
    return bytes(found)


def used(disk: Overlay) -> int:
    return os.fstat(disk._fd).st_blocks * 512 // CLUSTER


def test_writing_again_takes_no_more_room(disk: Overlay) -> None:
    for _ in range(10):
        put(disk, 1, b"1")
        disk.zero(CLUSTER, CLUSTER)
        disk.discard(2 * CLUSTER, CLUSTER)
        put(disk, 2, b"2")
    assert used(disk) <= 2 and os.fstat(disk._fd).st_size <= 2 * CLUSTER


def test_going_back_gives_room_back(disk: Overlay) -> None:
    put(disk, 1, b"1")
    saved = disk.save()
    for number in range(10):
        put(disk, 1, b"2")
        put(disk, 2, b"3")
        put(disk, number % 7, b"4")
        disk.load(saved)
        assert [get(disk, n) for n in (0, 1, 2)] == [b"b", b"1", b"b"]
        assert used(disk) <= 1


def test_a_snapshot_that_nothing_was_written_since_costs_nothing(disk: Overlay) -> None:
    put(disk, 1, b"1")
    assert disk.save() is disk.save()
    put(disk, 1, b"2")
    assert disk.save() is not disk.save() or disk.save() is disk.save()


def test_a_full_host_loses_nothing(disk: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    put(disk, 1, b"1")
    saved = disk.save()

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "pwritev", full)
        put(disk, 1, b"2")
    assert get(disk, 1) == b"1"
    put(disk, 1, b"3")
    disk.load(saved)
    assert get(disk, 1) == b"1"


def test_more_than_a_file_takes(disk: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MOST_IN_A_FILE", 2 * CLUSTER)
    for cluster in range(3):
        put(disk, cluster, b"x")
    with pytest.raises(StateError, match="the guest has written 0 MiB to disk x, which is temporary: a file"):
        disk.portable(disk.save())


words = st.binary(max_size=40) | st.none() | st.integers() | st.just(b"\1\0\0\0")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.dictionaries(st.sampled_from(["zero", "written", "data"]), words)
    | st.binary(max_size=4 * CLUSTERS - 1)
    | st.integers()
)
def test_damaged_data_is_one_line(disk: Overlay, saved: object) -> None:
    before = [get(disk, n) for n in range(CLUSTERS)]
    try:
        disk.load(saved)  # type: ignore[arg-type]
    except StateError as error:
        assert str(error) == "what was written to disk x is damaged"
        assert [get(disk, n) for n in range(CLUSTERS)] == before
    else:
        assert isinstance(saved, dict) and saved["data"] == b""
