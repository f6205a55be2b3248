"""The file of a snapshot: what is written comes back, and what is damaged is refused in one line."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvm_cffi import pages
from pyvmm import plain
from pyvmm.board.pages import PAGE, runs_of
from pyvmm.config import MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError
from pyvmm.machine.identity import Identity
from pyvmm.machine.saved import Saved
from pyvmm.machine.snapshot_file import HEADER_SIZE, SnapshotFile, SnapshotFileError, write
from pyvmm.units import MIB
from pyvmm.vcpu.kernel_time import Stood
from tests.rig.snapshot_files import try_mutants

RAM = MIB
MUTANTS = int(os.environ.get("PYVMM_SOAK_MUTANTS", "3000"))


def written(path: Path, contents: dict[int, bytes], **state: object) -> Path:
    """A file of a machine that has not much of a state; *contents* are pages by their numbers."""
    config = MachineConfig(guest="hello", memory=RAM).complete()
    identity = plain.of(Identity(config, [], 1_000_000))
    rest = {"parts": {"a": {"b": b"c"}}, "vcpus": [], "now": 5, "time": plain.of(Stood([], [], b"", 0))} | state
    runs = [(number * PAGE, memoryview(contents[number])) for number in sorted(contents)]
    write(str(path), identity, rest, RAM, runs)  # type: ignore[arg-type]
    return path


@given(st.sets(st.integers(0, 255)))
def test_runs(numbers: set[int]) -> None:
    own = pages.bitmap(512 * PAGE)
    for number in numbers:
        own[number // 8] |= 1 << number % 8
    runs = list(runs_of(own))
    assert {number for first, count in runs for number in range(first, first + count)} == numbers
    assert all(count > 0 for _, count in runs)
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(runs))


@given(contents=st.dictionaries(st.integers(0, 255), st.integers(1, 255), max_size=40), offset=st.integers(0, 255))
def test_ram_comes_back(tmp_path_factory: pytest.TempPathFactory, contents: dict[int, int], offset: int) -> None:
    path = tmp_path_factory.mktemp("ram") / "saved"
    written(path, {number: bytes((value,)) * PAGE for number, value in contents.items()})
    with SnapshotFile(str(path)) as file:
        file.check()
        memory = bytearray(RAM - offset * PAGE)
        file.read_into(memoryview(memory), offset * PAGE)
        for number in range(offset, 256):
            assert memory[(number - offset) * PAGE] == contents.get(number, 0)
        assert sum(length for _, length in file.runs()) == len(contents) * PAGE


def test_a_page_of_zeros_takes_no_room(tmp_path: Path) -> None:
    path = written(tmp_path / "saved", {7: b"x" * PAGE})
    assert path.stat().st_size >= RAM
    assert path.stat().st_blocks * 512 < 256 * 1024
    assert path.stat().st_mode & 0o777 == 0o600  # it holds whatever the guest knows


def test_one_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    path = written(tmp_path / "saved", {1: b"1" * PAGE})
    before = path.read_bytes()

    class GivenUp(Exception):
        pass

    def give_up(done: int, total: int) -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        write(str(path), {}, {}, RAM, [(0, memoryview(bytes(PAGE)))], give_up)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["saved"]


@pytest.mark.parametrize("where", ["nowhere/saved", ""])
def test_where_it_cannot_be_written(tmp_path: Path, where: str) -> None:
    with pytest.raises(SnapshotFileError, match=r"cannot write .*: (No such file|Is a directory)"):
        write(str(tmp_path / where), {}, {}, RAM, [])
    assert os.listdir(tmp_path) == []


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_what_is_said(tmp_path: Path) -> None:
    """One line each."""
    path = written(tmp_path / "saved", {1: b"1" * PAGE, 200: b"2" * PAGE})
    whole = path.read_bytes()

    def says(text: str, check: bool = False) -> None:
        with pytest.raises(UserError, match=text) as caught, SnapshotFile(str(path)) as file:
            assert check
            file.check()
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)

    path.write_bytes(b"\x7fELF")
    says("it is no snapshot of pyvmm")
    path.write_bytes(b"")
    says("it is no snapshot of pyvmm")
    path.write_bytes(whole[:20])
    says("it is truncated")
    os.truncate(path, len(whole) - 1)
    says(f"it is truncated: {len(whole) - 1} bytes of {len(whole)}")
    change(path, 16, b"\x01")
    says("it is of version 1, and this pyvmm reads version 2")
    change(path, 30, b"\xff")
    says("its header is damaged")
    change(path, HEADER_SIZE + 10, b"\xff")
    says("its configuration is damaged")
    change(path, whole.index(b'"parts"'), b"?")
    says("its state is damaged")
    ram = len(whole) - RAM
    change(path, ram + 200 * PAGE + 5, b"?")
    says("its RAM is damaged", check=True)
    change(path, ram + 2 * PAGE + 5, b"?")
    says("its RAM is damaged: there is something in a page that was zero", check=True)
    path.unlink()
    says("cannot read .*saved: No such file or directory")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="it is no regular file"):
        SnapshotFile(str(path))
    with pytest.raises(UserError, match="embedded null byte"):
        SnapshotFile("a\0b")


def test_a_state_that_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "saved", {}, now="soon")
    with pytest.raises(UserError, match="its state is not that of this version: it is no int"):
        Saved(str(path))
    written(path, {}, parts=[1])
    with pytest.raises(UserError, match="its state is not that of a machine"):
        Saved(str(path))


@given(st.one_of(st.sampled_from(["size=1M", "size=128M", "size", "address=1,size=0"]), st.text(max_size=20)))
@example("A.\0")
def test_memory_of_whatever_description_is_that_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Its size is the file's, less the RAM of the start; else it is refused in a line."""
    path = tmp_path_factory.mktemp("memory") / "saved"
    written(path, {})
    with SnapshotFile(str(path)) as file:
        identity, state = file.config, file.state
    assert isinstance(identity, dict) and isinstance(identity["config"], dict)
    identity["config"]["devices"] = (f"memory,{text}",)
    write(str(path), identity, state, RAM + MIB, [])
    try:
        saved = Saved(str(path))
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        assert text != "size=1M"
        return
    saved.close()
    assert DeviceSpec.parse(f"memory,{text}").arguments


def test_mutants(tmp_path: Path) -> None:
    """A seeded sample of those of scripts/soak."""
    seed = random.Random(10)
    whole = written(tmp_path / "saved", {number: seed.randbytes(PAGE) for number in (0, 1, 5, 255)})
    assert try_mutants(whole, tmp_path / "mutant", MUTANTS, seed=1) > MUTANTS / 2
