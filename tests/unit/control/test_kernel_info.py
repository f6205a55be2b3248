"""Whose VMCOREINFO a machine's is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drgn import ProgramFlags

from pyvmm import UserError, core_program, machine_program
from pyvmm.control.kernel_info import kernel_info
from pyvmm.units import PAGE_SIZE
from tests.rig.linux_memory import kernel, note, text
from tests.rig.paged import TABLES


def machine(told: object) -> Any:
    """With the note in the middle of a page, which is where nobody looks who has not been told."""
    paged = kernel()
    paged.memory.write(0x6654, note(b"VMCOREINFO\0", text()))
    vcpu = SimpleNamespace(get_sregs=lambda: paged.sregs)
    return SimpleNamespace(memory=paged.memory, vcpus=[vcpu], parts={"fw_cfg": SimpleNamespace(vmcoreinfo_note=told)})


def test_fw_cfg_is_told_where_it_is() -> None:
    told = SimpleNamespace(paddr=0x6654, size=PAGE_SIZE)
    assert kernel_info(machine(told)) == (text(), TABLES)


def test_it_is_told_nothing_or_nonsense() -> None:
    for told in (None, SimpleNamespace(paddr=1 << 60, size=1 << 30), SimpleNamespace(paddr=0x6000, size=64)):
        assert kernel_info(machine(told)) is None
    bare = machine(None)
    bare.parts = {}
    assert kernel_info(bare) is None
    bare.memory.write(0x8000, text())
    assert kernel_info(bare) == (text(), TABLES), "in RAM"


def test_a_program_of_what_is_hardly_a_kernel() -> None:
    """It says where its tables are, and else nothing that a kernel does: its memory can be looked at all the same."""
    made = machine(SimpleNamespace(paddr=0x6654, size=PAGE_SIZE))
    made.paused = lambda reason: nullcontext()
    program = machine_program(made)
    assert not program.flags & ProgramFlags.IS_LINUX_KERNEL
    assert program.read_u32(0x6654, physical=True) == len(b"VMCOREINFO\0")


def test_a_file_that_is_no_core(tmp_path: Path) -> None:
    (tmp_path / "core").write_text("no core")
    with pytest.raises(UserError, match=r"core: .*not a"):
        core_program(tmp_path / "core")
    with pytest.raises(UserError, match="No such file"):
        core_program(tmp_path / "missing")
