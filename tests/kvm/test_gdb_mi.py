"""gdb as an IDE drives it (pygdbmi, gdb's machine interface): what it stops at, shows and changes are records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import GdbServer, Machine, MachineConfig
from tests.rig.ide import Ide


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(MachineConfig(guest="keyboard", cpus=2)) as made:
        yield made


@pytest.fixture
def ide(machine: Machine) -> Iterator[Ide]:
    """Before the guest's first instruction."""
    with GdbServer(machine, "127.0.0.1:0", wait=True) as server:
        machine.start()
        with Ide(server.address) as made:
            yield made


def test_a_session(machine: Machine, ide: Ide, tmp_path: Path) -> None:
    ide.stopped()
    threads = ide.do("-thread-info")["threads"]
    assert [thread["id"] for thread in threads] == ["1", "2"] and threads[0]["frame"]["addr"] == "0x0000000000100000"
    ide.do("-break-insert -h *0x100028")
    stop = ide.go("-exec-continue")
    assert (stop["reason"], stop["frame"]["addr"]) == ("breakpoint-hit", "0x0000000000100028")
    assert ide.go("-exec-step-instruction")["frame"]["addr"] == "0x000000000010002f"
    instructions = ide.do("-data-disassemble -s $pc -e $pc+3 -- 0")["asm_insns"]
    assert [each["inst"] for each in instructions] == ["push   %rax", "lretq"]
    ide.do("-data-write-memory-bytes 0x600000 6c6f6f6b00")
    assert machine.memory.read(0x600000, 5) == b"look\0"
    read = ide.do("-data-read-memory-bytes 0x600000 5")["memory"][0]
    assert read["contents"] == "6c6f6f6b00"
    ide.do("-gdb-set var $r15 = 0x1234")
    assert machine.vcpus[0].get_regs().r15 == 0x1234
    core = tmp_path / "core"
    assert f"written to {core}" in ide.said(f"monitor dump {core}")
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert "name a file" in ide.said("monitor dump")
    ide.do("-break-delete")
    ide.do("-target-detach")
    assert machine.wait(lambda: "> " in machine.screen, 60)
