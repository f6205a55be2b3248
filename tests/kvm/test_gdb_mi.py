"""gdb as an IDE drives it (pygdbmi, gdb's machine interface): what it stops at, shows and changes are records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pygdbmi.gdbcontroller import GdbController

from pyvmm import GdbServer, Machine, MachineConfig

PATIENCE = 120
"""Seconds until gdb answers; the machine may be busy."""


class Ide:
    """gdb at *address*."""

    def __init__(self, address: str) -> None:
        command = ["gdb", "-nx", "--quiet", "--interpreter=mi3"]
        self.gdb = GdbController(command, time_to_check_for_additional_output_sec=0.01)
        self._seen: list[dict[str, Any]] = []
        self.do(f"-target-select remote {address}")

    def _until(self, kind: str, *messages: str) -> dict[str, Any]:
        """The next record of this *kind* whose message is one of *messages*."""
        while True:
            for place, record in enumerate(self._seen):
                if record["type"] == kind and record["message"] in messages:
                    del self._seen[place]
                    return record
            self._seen += self.gdb.get_gdb_response(timeout_sec=PATIENCE)

    def do(self, command: str) -> dict[str, Any]:
        """What *command* results in; AssertionError where that is an error."""
        self.gdb.write(command, read_response=False)
        record = self._until("result", "done", "running", "connected", "error")
        assert record["message"] != "error", record["payload"]
        payload: dict[str, Any] = record["payload"] or {}
        return payload

    def go(self, command: str) -> dict[str, Any]:
        """Where the guest stops after *command*."""
        self.do(command)
        payload: dict[str, Any] = self._until("notify", "stopped")["payload"]
        return payload

    def said(self, command: str) -> str:
        """What a command of the console prints."""
        self.do(f'-interpreter-exec console "{command}"')
        text = "".join(record["payload"] for record in self._seen if record["type"] in ("console", "target"))
        self._seen = [record for record in self._seen if record["type"] not in ("console", "target")]
        return text.encode().decode("unicode_escape")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(MachineConfig(guest="keyboard", cpus=2)) as made:
        yield made


@pytest.fixture
def ide(machine: Machine) -> Iterator[Ide]:
    """Before the guest's first instruction."""
    with GdbServer(machine, "127.0.0.1:0", wait=True) as server:
        machine.start()
        made = Ide(server.address)
        try:
            yield made
        finally:
            made.gdb.exit()


def test_a_session(machine: Machine, ide: Ide, tmp_path: Path) -> None:
    ide._until("notify", "stopped")
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
