"""machine.translate(): the guest's address, and where that is on this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyvmm.board.host_address import locate
from pyvmm.config import MachineConfig
from pyvmm.host.commands import perform
from pyvmm.host.writer import SnapshotWriter
from pyvmm.machine.machine import Machine
from pyvmm.machine.snapshot import Snapshot


class FakeSeat:
    """Hears what is said."""

    snapshot: Snapshot | None = None
    writer: SnapshotWriter | None = None

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, question: str, answer: Callable[[str | None], None]) -> None: ...

    def screenshot(self) -> Path:
        raise AssertionError

    def prompt(self) -> None: ...


def test_ctrl_a_m() -> None:
    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.start()
        machine.wait(lambda: "> " in machine.screen)
        seat = FakeSeat(machine)
        machine.call(lambda: perform("m", seat))
        assert machine.wait(lambda: bool(seat.said))
        for name in ("RIP linear 0x", "RSP linear 0x", "CR2 linear 0x0"):
            assert name in seat.said[0], seat.said


def test_the_way_of_an_address_and_what_there_is_none_for() -> None:
    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.start()
        machine.wait(lambda: "> " in machine.screen)
        found = machine.translate(0x100000)
        assert found.physical_address == 0x100000 and found.agrees
        assert found.host is not None and locate(machine.memory, 0x100000) == found.host
        host = found.host
        assert bytes(host.region.buffer[0x100000 - host.region.gpa :][:16]) == machine.memory.read(0x100000, 16)
        text = str(found)
        assert f"host virtual {host.virtual:#x}" in text and "KVM_TRANSLATE agrees" in text
        assert f"memory slot {machine.board.slots.slot(host.region.gpa)}: RAM" in text
        assert "no RAM" in str(machine.translate(0xB8000))
