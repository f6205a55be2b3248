"""What scripts/bench boot-disk boots."""

from __future__ import annotations

from pathlib import Path

from benchmarks import boot_disk
from pyvmm.config import MachineConfig
from pyvmm.units import MIB
from tests.rig.board import Board


def test_the_boot_sector_sends_its_line(tmp_path: Path) -> None:
    boot_disk.write_disk(tmp_path / "disk")
    with Board(MachineConfig(memory=2 * MIB, devices=(f"virtio-blk,path={tmp_path}/disk",))) as machine:
        machine.on_output = lambda data: machine.end() if machine.output.endswith(b"\0") else None
        machine.run(60)
        assert machine.output == boot_disk.LINE + b"\0"


def test_all_contenders_boot_the_same_disk() -> None:
    made = boot_disk.commands(Path("/disk"))
    assert [name for name, words in made.items() if any("/disk" in word for word in words)] == list(made)
