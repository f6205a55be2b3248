"""The devices that programs for testing KVM expect, driven by a guest as kvm-unit-tests' library drives them."""

from __future__ import annotations

import pytest

from pyvmm.board.doorbell import IoeventfdDoorbell
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import Board, board

DEVICES = ("testdev", "pci-testdev")


def finish(machine: Board) -> None:
    """The guest's value is the number of the step that went wrong: see guests/testdev/main.c."""
    assert machine.finish(60) == Outcome(End.DEBUG_EXIT, 0), f"step {machine.value('step')}"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_all_of_them(irqchip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[int] = []
    ring = IoeventfdDoorbell._rung

    def count(self: IoeventfdDoorbell) -> None:
        rung.append(self._address)
        ring(self)

    monkeypatch.setattr(IoeventfdDoorbell, "_rung", count)
    cpus = 1 if irqchip == "user" else 3
    with board("testdev", devices=DEVICES, irqchip=irqchip, cpus=cpus, memory=32 * MIB) as machine:
        finish(machine)
        assert (machine.value("cpus"), machine.value("ram_size")) == (cpus, 32 * MIB)
        assert machine.value("interrupts") == 3
        assert 1 <= machine.value("counted") <= 10
    assert len(set(rung)) == 4, "two tests of each BAR, by an ioeventfd and not by an exit"


@pytest.mark.parametrize(("devices", "step"), [((), 4), (("testdev",), 11), (("pci-testdev",), 4)])
def test_without_a_device_the_guest_says_which_step(devices: tuple[str, ...], step: int) -> None:
    with board("testdev", devices=devices) as machine:
        assert machine.finish(60) == Outcome(End.DEBUG_EXIT, step)
