"""Boot sectors as people write them: the same screen, and the same on the debug console, as by SeaBIOS under QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig import boot_sector
from tests.rig.boot_sector import Kind
from tests.rig.boot_sectors import COMMON, KEYS, SECTORS

FROM_FLOPPY = ("print", "second stage", "reset and retry")


@pytest.mark.parametrize("name", SECTORS)
def test_the_screen_is_that_of_seabios(tmp_path: Path, name: str) -> None:
    kind: Kind = "floppy" if name in FROM_FLOPPY else "virtio"
    image = boot_sector.sector(COMMON + SECTORS[name], tmp_path)
    ours = boot_sector.pyvmm(image, tmp_path, kind=kind)
    theirs = boot_sector.seabios(image, tmp_path, kind=kind)
    assert ours.lines and any(ours.lines)
    assert ours.lines == theirs.lines
    assert ours.console == theirs.console
    assert ours.cells == theirs.cells


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_seabios(tmp_path: Path, name: str) -> None:
    keys, code = KEYS[name]
    image = boot_sector.sector(COMMON + code, tmp_path)
    ours = boot_sector.pyvmm(image, tmp_path, keys=keys)
    assert ours.lines == boot_sector.seabios(image, tmp_path, keys=keys).lines
