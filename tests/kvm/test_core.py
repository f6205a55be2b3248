"""Core files of small guests, as gdb and drgn open them."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from drgn import Program

from pyvmm import End, Machine, MachineConfig, UserError, write_core
from pyvmm.control.core.write import PHYSICAL_AT
from pyvmm.units import MIB


def gdb(core: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-ex", command)]
    ran = subprocess.run(["gdb", "-nx", "-batch", "-c", core, *words], capture_output=True, text=True, timeout=600)
    return ran.stdout + ran.stderr


def test_a_guest_with_paging(tmp_path: Path) -> None:
    """gdb shows its memory at its own addresses, its physical memory above all of them, and each vCPU's registers."""
    core = tmp_path / "core"
    with Machine(MachineConfig(guest="keyboard", cpus=2, memory=64 * MIB)) as machine:
        machine.start()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        machine.pause()
        machine.memory.write(0x600000, b"here I am\0")
        write_core(machine, core)
        rips = [vcpu.get_regs().rip for vcpu in machine.vcpus]
        code = machine.memory.read_int(0x100000, 8)
        assert machine.state == "paused", "as it was"
    said = gdb(core, "info threads", "print/x $rip", "x/s 0x600000", f"x/s {PHYSICAL_AT + 0x600000:#x}",
               "x/gx 0x100000", "thread 2", "print/x $rip", "x/x 0x10000000000")  # fmt: skip
    for line in (
        "LWP 1",
        "LWP 2",
        f"$1 = {rips[0]:#x}",
        '0x600000:\t"here I am"',
        f'{PHYSICAL_AT + 0x600000:#x}:\t"here I am"',
        f"0x100000:\t{code:#018x}",
        f"$2 = {rips[1]:#x}",
        "Cannot access memory at address 0x10000000000",
    ):
        assert line in said, said
    found = core.stat()
    assert found.st_size > 63 * MIB > 8 * found.st_blocks * 512, "what nobody wrote takes no room"
    program = Program()
    program.set_core_dump(core)
    assert program.read_c_string(0x600000) == b"here I am"
    assert program.thread(1).stack_trace()[0].pc == rips[0]


def test_a_guest_that_has_ended_in_real_mode(tmp_path: Path) -> None:
    core = tmp_path / "core"
    with Machine(MachineConfig(guest="timer", guest_parameters=(("count", 2),))) as machine:
        assert machine.run(60).end is End.DEBUG_EXIT
        write_core(machine, core)
        code, regs = machine.memory.read(0x7C00, 4).hex(), machine.vcpus[0].get_regs()
    said = gdb(core, "print/x $rip", "print/x $rsp", "x/4bx 0x7c00")
    assert f"$1 = {regs.rip:#x}\n$2 = {regs.rsp:#x}\n" in said
    assert "".join(f"\t0x{byte:02x}" for byte in bytes.fromhex(code)) in said


def test_a_machine_out_of_a_snapshots_file(tmp_path: Path) -> None:
    """Most of its RAM is still in that file."""
    saved, core = tmp_path / "saved", tmp_path / "core"
    with Machine(MachineConfig(guest="keyboard", memory=64 * MIB)) as machine:
        machine.start()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        machine.memory.write(0x600000, b"from the file\0")
        machine.snapshot().save(saved)
    with Machine.restored(saved) as machine:
        write_core(machine, core)
        code = machine.memory.read_int(0x100000, 8)
    said = gdb(core, "x/s 0x600000", "x/gx 0x100000")
    assert '"from the file"' in said and f"0x100000:\t{code:#018x}" in said, said
    assert 8 * core.stat().st_blocks * 512 < 63 * MIB


def test_it_takes_the_place_of_a_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = tmp_path / "core"
    core.write_text("old")
    with Machine(MachineConfig(guest="hello")) as machine:
        with pytest.raises(UserError, match=r"cannot write .*: No such file"):
            write_core(machine, tmp_path / "nowhere" / "core")
        real, calls = os.pwrite, [0]

        def full(fd: int, data: bytes, offset: int) -> int:
            calls[0] += 1
            if calls[0] > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="No space left"):
            write_core(machine, core)
        assert core.read_text() == "old" and list(tmp_path.iterdir()) == [core]
        monkeypatch.undo()
        write_core(machine, core)
        assert core.read_bytes()[:4] == b"\x7fELF"
