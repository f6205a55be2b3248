"""What scripts/bench grub-lab boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import grub
from benchmarks.boot import run_until
from benchmarks.boot_disk import QEMU
from benchmarks.programs import BenchError


def test_the_menu_comes_on_the_serial_port(tmp_path: Path) -> None:
    """Under QEMU, whose emulated processor needs no KVM."""
    disk = tmp_path / "disk.img"
    grub.make_disk(disk)
    words = ["tcg" if word == "kvm" else word for word in grub.commands(disk)[QEMU]]
    vapic = words.index("-global")  # KVM's alone
    command = words[:vapic] + words[vapic + 2 :]
    assert run_until(command, grub.MENU).seconds > 0
    disk.write_bytes(bytes(disk.stat().st_size))
    with pytest.raises(BenchError, match="did not print 'GNU GRUB'"):
        run_until([*command, "-boot", "reboot-timeout=0", "-no-reboot"], grub.MENU)


def test_all_contenders_boot_the_same_disk() -> None:
    made = grub.commands(Path("/disk"))
    assert [name for name, words in made.items() if any("/disk" in word for word in words)] == list(made)
